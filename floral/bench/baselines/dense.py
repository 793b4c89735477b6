"""PyTorch baseline for models of linear layers. The matrix products of several clients are computed as one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from floral.bench.baselines.batches import Batches, Samples, mean_model
from floral.bench.baselines.workers import Buffers, sum_over_workers
from floral.core.spec import Params

Layers = list[tuple[Tensor, Tensor]]
"""Weight and bias of each layer.

Shared by all clients: [out, in] and [out]. Of c clients: [c, out, in] and [c, out, 1].
"""


@dataclass
class Dense:
    """FedAvg for models of linear layers with ReLU between them, with `chunk` clients in each batched matrix product.

    Three things make it fast:

    - One matrix product computes the gradients and updates the weights.
    - In the first step all clients have the same weights, so they share one product.
    - The last update of all clients is added to the sum of the models as one product. So the clients' final weights are
      not stored.
    """

    data: Samples = field(repr=False)
    layers: tuple[str, ...]
    lr: float
    workers: int
    chunk: int
    buffers: list[Buffers] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.data = Samples(self.data.x.flatten(1), self.data.targets, self.data.classes)
        self.buffers = [Buffers() for _ in range(self.workers)]

    def __call__(self, params: Params, batches: Batches) -> Params:
        shared = [(params[f"{name}.weight"], params[f"{name}.bias"]) for name in self.layers]

        def work(worker: int, chunks: Sequence[Tensor]) -> Params:
            total = {name: torch.zeros_like(value) for name, value in params.items()}
            sums = [(total[f"{name}.weight"], total[f"{name}.bias"]) for name in self.layers]
            for chunk in chunks:
                self.train(shared, chunk, batches.sizes, self.buffers[worker], sums)
            return total

        return mean_model(params, sum_over_workers(work, batches.index.split(self.chunk), self.workers), batches)

    def __str__(self) -> str:
        return f"hand-batched products, chunk {self.chunk}, {self.workers} × 1 threads"

    def train(self, shared: Layers, index: Tensor, sizes: tuple[int, ...], buffers: Buffers, sums: Layers) -> None:
        """Train c clients for the local steps of a round, and add the sum of their final models to `sums`.

        `index` [c, H, B] holds the indices of the clients' training samples for H steps in batches of at most B
        samples.
        """
        per_client: Layers = []
        for step, n in enumerate(sizes):
            flat = index[:, step, :n].reshape(-1)
            x, target = buffers.gather("x", self.data.x, flat), buffers.gather("target", self.data.targets, flat)
            if step == 0:
                inputs, deltas = self.backpropagate_shared(shared, x, target, len(index))
            else:
                inputs, deltas = self.backpropagate_per_client(per_client, x, target, len(index))
            rate = -self.lr / n
            if step == len(sizes) - 1:
                self.add_models(per_client, inputs, deltas, rate, sums)
            elif step == 0:
                per_client = self.first_update(shared, inputs, deltas, rate, buffers)
            else:
                for (weight, bias), a, delta in zip(per_client, inputs, deltas, strict=True):
                    weight.baddbmm_(delta, a.mT, alpha=rate)
                    bias.add_(delta.sum(2, keepdim=True), alpha=rate)

    def backpropagate_shared(
        self, layers: Layers, x: Tensor, target: Tensor, c: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs [c, in, n] and the gradients δ [c, out, n] of each layer. All c clients have the same
        weights.

        δ is the gradient of the loss with respect to the layer's output before the activation. n is the number of
        samples per client.
        """
        inputs, out = [x], x
        for weight, bias in layers[:-1]:
            out = torch.addmm(bias, out, weight.T).clamp_(min=0)
            inputs.append(out)
        weight, bias = layers[-1]
        deltas = [self.data.output_gradient(torch.addmm(bias, out, weight.T), target, 1)]
        for (weight, _), a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            deltas.insert(0, relu_backward(deltas[0] @ weight, a))
        by_client = [[t.view(c, -1, t.shape[1]).mT for t in tensors] for tensors in (inputs, deltas)]
        return by_client[0], by_client[1]

    def backpropagate_per_client(
        self, layers: Layers, x: Tensor, target: Tensor, c: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs [c, in, n] and the gradients δ [c, out, n] of each layer. Each of the c clients has its own
        weights.

        δ is the gradient of the loss with respect to the layer's output before the activation. n is the number of
        samples per client.
        """
        out = x.view(c, -1, x.shape[1]).mT
        inputs = [out]
        for weight, bias in layers[:-1]:
            out = torch.baddbmm(bias, weight, out).clamp_(min=0)
            inputs.append(out)
        weight, bias = layers[-1]
        targets = target.view(c, -1, target.shape[1]).mT
        deltas = [self.data.output_gradient(torch.baddbmm(bias, weight, out), targets, 1)]
        for (weight, _), a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            deltas.insert(0, relu_backward(torch.bmm(weight.mT, deltas[0]), a))
        return inputs, deltas

    def first_update(
        self, shared: Layers, inputs: Iterable[Tensor], deltas: Iterable[Tensor], rate: float, buffers: Buffers
    ) -> Layers:
        """Return the weights of each client after the first step.

        For each layer, one operation copies the shared weights and updates the copies.
        """
        per_client = []
        for at, ((weight, bias), a, delta) in enumerate(zip(shared, inputs, deltas, strict=True)):
            c = len(delta)
            updated = buffers(f"weight{at}", c, *weight.shape)
            torch.baddbmm(weight.expand(c, *weight.shape), delta, a.mT, alpha=rate, out=updated)
            per_client.append((updated, torch.add(bias[:, None], delta.sum(2, keepdim=True), alpha=rate)))
        return per_client

    def add_models(
        self, per_client: Layers, inputs: Iterable[Tensor], deltas: Iterable[Tensor], rate: float, sums: Layers
    ) -> None:
        """Add the clients' final models to `sums`.

        This is the sum of their weights before the last step (`per_client`), plus the sum of their last updates, which
        is one matrix product. In a round of one step, `per_client` is empty, and only the updates are added.
        """
        for (weights, biases), (weight, bias) in zip(per_client, sums, strict=False):
            weight += weights.sum(0)
            bias += biases.sum((0, 2))
        for (weight, bias), a, delta in zip(sums, inputs, deltas, strict=True):
            flat = delta.mT.reshape(-1, delta.shape[1])
            weight.addmm_(flat.T, a.mT.reshape(-1, a.shape[1]), alpha=rate)
            bias.add_(flat.sum(0), alpha=rate)


def relu_backward(gradient: Tensor, activation: Tensor) -> Tensor:
    """Return the gradient with respect to the input of a ReLU.

    `gradient` is the gradient with respect to the output, and is overwritten with the result. `activation` is the
    output.
    """
    return torch.ops.aten.threshold_backward.grad_input(gradient, activation, 0.0, grad_input=gradient)

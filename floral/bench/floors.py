"""The floor: FedAvg's local SGD steps in the fastest bare PyTorch that we know, against which the engine is timed.

Forward, backward and update are written by hand for the two benchmarked families of models. There is no framework, no
sampling, no evaluation; inputs are decoded once. Each worker is a Python thread with one thread inside its operations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.core.streams import Stream
from floral.engine.rows import Plan, Rows
from floral.nn.layers import Linear, Model

aten = torch.ops.aten

CHUNKS = (3, 5, 8, 15, 1 << 30)
"""Clients whose products are batched, as tried by `tuned`: few keep their weights in the cache, many cost less
dispatch."""
TRIALS = 4
ROWS_OF_A_CONVOLUTION = 64
"""Rows that clients of a one-step round share a convolution with: more of them leave the cache."""


@dataclass(frozen=True)
class Batches:
    """The batches of a round: row numbers [M, H, B], of which step h uses the first sizes[h] of every client."""

    index: Tensor
    sizes: tuple[int, ...]

    @property
    def clients(self) -> int:
        return len(self.index)

    @property
    def samples(self) -> int:
        return self.clients * sum(self.sizes)


def batches(plan: Plan) -> Batches:
    """The engine's batches of a round.

    Raises:
        Refused: the clients have rows of unequal number.
    """
    sizes = plan.mask.sum(-1)
    if bool((sizes != sizes[0]).any()):
        raise Refused("its clients have unequal numbers of training rows, and the floor knows equal ones only")
    return Batches(plan.index, tuple(int(size) for size in sizes[0] if size > 0))


@dataclass(frozen=True)
class Examples:
    """Decoded rows x [N, ...], targets [N, outputs] (one-hot or numbers), and whether the loss is cross-entropy."""

    x: Tensor
    targets: Tensor
    classes: bool

    def slope(self, outputs: Tensor, targets: Tensor, dim: int) -> Tensor:
        """Gradient of each sample's loss by its outputs, which lie along `dim`; `outputs` may be overwritten."""
        if self.classes:
            return torch.softmax(outputs, dim).sub_(targets)
        return outputs.sub_(targets).mul_(2 / outputs.shape[dim])


def examples(rows: Rows) -> Examples:
    """All training rows, decoded as the engine decodes them.

    Raises:
        Refused: the task augments its training images.
    """
    if rows.augment is not None:
        raise Refused("the task augments its training images, and the floor does not")
    x = rows.decode(rows.x)
    if rows.y.dtype != torch.int64:
        return Examples(x, rows.y, classes=False)
    return Examples(x, F.one_hot(rows.y).to(x.dtype), classes=True)


class Floor(Protocol):
    def __call__(self, params: Params, batches: Batches) -> Params:
        """The mean of the clients' models after their local steps from `params`; all clients weigh the same."""
        ...

    def __str__(self) -> str:
        """How it works, in words."""
        ...


def floor(kind: str, model: Model, rows: Rows, lr: float, batches: Batches, threads: int) -> Floor:
    """The floor of a model of `kind`, a file of floral/models, with the fastest chunk and workers on these batches.

    Raises:
        Refused: there is no floor for this model, or none for this task.
    """
    plain = all(isinstance(layer, Linear) for layer in model.layers.values())
    if kind != "cnn" and not (kind in ("linear", "mlp") and plain):
        raise Refused(f"there is no floor for the model {kind}{' with batch norm' if kind == 'mlp' else ''}")
    if rows.x.device.type != "cpu":
        raise Refused("the floor is of a CPU")
    data = examples(rows)
    workers = sorted({1, threads})
    if kind == "cnn":
        return tuned([Convolutions(data, lr, count) for count in workers], model, batches)
    chunks = sorted({min(chunk, -(-batches.clients // count)) for chunk in CHUNKS for count in workers})
    layers = tuple(model.layers)
    return tuned([Dense(data, layers, lr, count, chunk) for count in workers for chunk in chunks], model, batches)


def tuned(candidates: Sequence[Floor], model: Model, batches: Batches) -> Floor:
    """The fastest candidate, tried in turns after one round that warms up."""
    params = model.init(Stream(0, "floor"))
    best = [math.inf] * len(candidates)
    for trial in range(1 + TRIALS):
        for at, candidate in enumerate(candidates):
            began = time.perf_counter()
            candidate(params, batches)
            if trial > 0:
                best[at] = min(best[at], time.perf_counter() - began)
    return candidates[best.index(min(best))]


# --------------------------------------------------------------------------------------------- workers


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "floor", initializer=torch.set_num_threads, initargs=(1,))


def summed(work: Callable[[int, Sequence[Tensor]], Params], parts: Sequence[Tensor], workers: int) -> Params:
    """Σ over workers of work(worker, its parts): every `workers`-th part."""
    if workers == 1:
        return work(0, parts)
    totals = list(pool(workers).map(lambda worker: work(worker, parts[worker::workers]), range(workers)))
    for other in totals[1:]:
        for name, value in other.items():
            totals[0][name] += value
    return totals[0]


@dataclass
class Buffers:
    """Memory that one worker uses again and again, by name."""

    held: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.held or self.held[name].numel() < size:
            self.held[name] = torch.empty(size)
        return self.held[name][:size].view(shape)

    def rows(self, name: str, source: Tensor, index: Tensor) -> Tensor:
        """source[index], gathered into the buffer of that name."""
        return torch.index_select(source, 0, index, out=self(name, len(index), *source.shape[1:]))


def mean(params: Params, total: Params, batches: Batches) -> Params:
    """Mean model: of the summed models or, after a single step, of the summed changes."""
    change = len(batches.sizes) == 1
    return {
        name: total[name].div_(batches.clients).add_(value) if change else total[name].div_(batches.clients)
        for name, value in params.items()
    }


# ---------------------------------------------------------------------------------------------- dense


Layers = list[tuple[Tensor, Tensor]]
"""Weight and bias of each layer: [out, in] and [out] shared by all, or [c, out, in] and [c, out, 1] of c clients."""


@dataclass
class Dense:
    """FedAvg of linear layers with ReLU between them: the products of `chunk` clients at a time are batched.

    What makes it fast: the update is part of the product that makes the gradient, W ← W - lr/n·δ xᵀ (`baddbmm_`). The
    first step is one product with the weights that all clients still share, and the chunk's own copies come out of its
    update. The last update goes into the mean, as one product over all clients: Σ_k (W_k - lr/n·δ_k x_kᵀ). So a round
    of one step needs no weights per client at all.
    """

    data: Examples = field(repr=False)
    layers: tuple[str, ...]
    lr: float
    workers: int
    chunk: int
    buffers: list[Buffers] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.data = Examples(self.data.x.flatten(1), self.data.targets, self.data.classes)
        self.buffers = [Buffers() for _ in range(self.workers)]

    def __call__(self, params: Params, batches: Batches) -> Params:
        shared = [(params[f"{name}.weight"], params[f"{name}.bias"]) for name in self.layers]

        def work(worker: int, parts: Sequence[Tensor]) -> Params:
            total = {name: torch.zeros_like(value) for name, value in params.items()}
            into = [(total[f"{name}.weight"], total[f"{name}.bias"]) for name in self.layers]
            for part in parts:
                self.train(shared, part, batches.sizes, self.buffers[worker], into)
            return total

        return mean(params, summed(work, batches.index.split(self.chunk), self.workers), batches)

    def __str__(self) -> str:
        return f"hand-batched products, chunk {self.chunk}, {self.workers} × 1 threads"

    def train(self, shared: Layers, index: Tensor, sizes: tuple[int, ...], buffers: Buffers, into: Layers) -> None:
        """Local steps of a chunk of clients, whose models are added to `into`."""
        own: Layers = []
        for step, n in enumerate(sizes):
            flat = index[:, step, :n].reshape(-1)
            x, target = buffers.rows("x", self.data.x, flat), buffers.rows("target", self.data.targets, flat)
            if step == 0:
                inputs, slopes = self.shared_pass(shared, x, target, len(index))
            else:
                inputs, slopes = self.own_pass(own, x, target, len(index))
            rate = -self.lr / n
            if step == len(sizes) - 1:
                self.finish(own, inputs, slopes, rate, into)
            elif step == 0:
                own = self.leave(shared, inputs, slopes, rate, buffers)
            else:
                for (weight, bias), a, slope in zip(own, inputs, slopes, strict=True):
                    weight.baddbmm_(slope, a.mT, alpha=rate)
                    bias.add_(slope.sum(2, keepdim=True), alpha=rate)

    def shared_pass(self, layers: Layers, x: Tensor, target: Tensor, c: int) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs [c, in, n] and slopes [c, out, n] of each layer, for weights that all c clients share."""
        inputs, out = [x], x
        for weight, bias in layers[:-1]:
            out = torch.addmm(bias, out, weight.T).clamp_(min=0)
            inputs.append(out)
        weight, bias = layers[-1]
        slopes = [self.data.slope(torch.addmm(bias, out, weight.T), target, 1)]
        for (weight, _), a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            slopes.insert(0, rectified(slopes[0] @ weight, a))
        by_client = [[t.view(c, -1, t.shape[1]).mT for t in tensors] for tensors in (inputs, slopes)]
        return by_client[0], by_client[1]

    def own_pass(self, layers: Layers, x: Tensor, target: Tensor, c: int) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs [c, in, n] and slopes [c, out, n] of each layer, for weights of each client's own."""
        out = x.view(c, -1, x.shape[1]).mT
        inputs = [out]
        for weight, bias in layers[:-1]:
            out = torch.baddbmm(bias, weight, out).clamp_(min=0)
            inputs.append(out)
        weight, bias = layers[-1]
        targets = target.view(c, -1, target.shape[1]).mT
        slopes = [self.data.slope(torch.baddbmm(bias, weight, out), targets, 1)]
        for (weight, _), a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
            slopes.insert(0, rectified(torch.bmm(weight.mT, slopes[0]), a))
        return inputs, slopes

    def leave(
        self, shared: Layers, inputs: Iterable[Tensor], slopes: Iterable[Tensor], rate: float, buffers: Buffers
    ) -> Layers:
        """Each client's own weights after the first step; the copy and the update are one operation."""
        own = []
        for at, ((weight, bias), a, slope) in enumerate(zip(shared, inputs, slopes, strict=True)):
            c = len(slope)
            into = buffers(f"weight{at}", c, *weight.shape)
            torch.baddbmm(weight.expand(c, *weight.shape), slope, a.mT, alpha=rate, out=into)
            own.append((into, torch.add(bias[:, None], slope.sum(2, keepdim=True), alpha=rate)))
        return own

    def finish(
        self, own: Layers, inputs: Iterable[Tensor], slopes: Iterable[Tensor], rate: float, into: Layers
    ) -> None:
        """Add the clients' models, and the last step's change of all of them as one product."""
        for (weights, biases), (weight, bias) in zip(own, into, strict=False):
            weight += weights.sum(0)
            bias += biases.sum((0, 2))
        for (weight, bias), a, slope in zip(into, inputs, slopes, strict=True):
            flat = slope.mT.reshape(-1, slope.shape[1])
            weight.addmm_(flat.T, a.mT.reshape(-1, a.shape[1]), alpha=rate)
            bias.add_(flat.sum(0), alpha=rate)


def rectified(slope: Tensor, activation: Tensor) -> Tensor:
    """The slope below a ReLU, in place of the slope above it."""
    return aten.threshold_backward.grad_input(slope, activation, 0.0, grad_input=slope)


# --------------------------------------------------------------------------------------- convolutions


@dataclass
class Convolutions:
    """FedAvg of floral/models/cnn.py, one client after another, images channels last.

    Pooling comes before ReLU, and what a pool needs on the way back is only its indices: its gradient is written over
    its input. In a round of one step clients share their convolutions, ROWS_OF_A_CONVOLUTION at a time.
    """

    data: Examples = field(repr=False)
    lr: float
    workers: int
    buffers: list[Buffers] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        x = self.data.x
        self.data = Examples(x if x.dim() == 4 else x[..., None], self.data.targets, self.data.classes)
        self.buffers = [Buffers() for _ in range(self.workers)]

    def __call__(self, params: Params, batches: Batches) -> Params:
        start = {name: channels_last(value) for name, value in params.items()}
        together = max(1, ROWS_OF_A_CONVOLUTION // batches.sizes[0]) if len(batches.sizes) == 1 else 1

        def work(worker: int, parts: Sequence[Tensor]) -> Params:
            total = {name: torch.zeros_like(value) for name, value in start.items()}
            for part in parts:
                self.train(start, part, batches.sizes, self.buffers[worker], total)
            return total

        return mean(start, summed(work, batches.index.split(together), self.workers), batches)

    def __str__(self) -> str:
        return f"one client after another, channels last, {self.workers} × 1 threads"

    def train(self, start: Params, index: Tensor, sizes: tuple[int, ...], buffers: Buffers, total: Params) -> None:
        """Local steps of one client, whose model is added to `total`; of a single step, only its change."""
        own = start
        for step, n in enumerate(sizes):
            flat = index[:, step, :n].reshape(-1)
            x = buffers.rows("x", self.data.x, flat).permute(0, 3, 1, 2)
            gradients = self.gradients(own, x, buffers.rows("target", self.data.targets, flat))
            rate = -self.lr / n
            if step == len(sizes) - 1:
                for name, gradient in gradients.items():
                    total[name].add_(gradient, alpha=rate)
            elif step == 0:
                own = {name: torch.add(value, gradients[name], alpha=rate) for name, value in start.items()}
            else:
                for name, gradient in gradients.items():
                    own[name].add_(gradient, alpha=rate)
        if len(sizes) > 1:
            for name, value in own.items():
                total[name] += value

    def gradients(self, p: Params, x: Tensor, target: Tensor) -> Params:
        """Gradients of the summed loss of one batch x [B, channels, H, W]."""
        first, at_first, pooled = pool_after(x, p["conv1.weight"], p["conv1.bias"], 2)
        second, at_second, features = pool_after(pooled, p["conv2.weight"], p["conv2.bias"], 3)
        flat = features.flatten(1)
        hidden = torch.addmm(p["hidden.bias"], flat, p["hidden.weight"].T).clamp_(min=0)
        slope = self.data.slope(torch.addmm(p["out.bias"], hidden, p["out.weight"].T), target, 1)
        below = rectified(slope @ p["out.weight"], hidden)
        found = {"out.weight": slope.T @ hidden, "out.bias": slope.sum(0)}
        found |= {"hidden.weight": below.T @ flat, "hidden.bias": below.sum(0)}
        back = rectified(channels_last((below @ p["hidden.weight"]).view(features.shape)), features)
        back = convolved_back(back, second, at_second, 3, pooled, p["conv2.weight"], True)
        found |= {"conv2.weight": back[1], "conv2.bias": back[2]}
        back = convolved_back(rectified(back[0], pooled), first, at_first, 2, x, p["conv1.weight"], False)
        return found | {"conv1.weight": back[1], "conv1.bias": back[2]}


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def pool_after(x: Tensor, weight: Tensor, bias: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """conv → max-pool → ReLU: the convolution's output, the pool's indices, the result."""
    convolved = F.conv2d(x, weight, bias)
    pooled, index = aten.max_pool2d_with_indices(convolved, [size, size])
    return convolved, index, pooled.clamp_(min=0)


def convolved_back(
    slope: Tensor, convolved: Tensor, index: Tensor, size: int, x: Tensor, weight: Tensor, below: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through the pool, over what it pooled, and the convolution: slopes of x (if `below`), weight and bias."""
    pooled_by = ([size, size], [size, size], [0, 0], [1, 1], False)
    aten.max_pool2d_with_indices_backward.grad_input(slope, convolved, *pooled_by, index, grad_input=convolved)
    once = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    return aten.convolution_backward(convolved, x, weight, [len(weight)], *once, [below, True, True])

"""PyTorch baseline for the model `cnn`. It trains one client after another, with images in channels-last order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.bench.baselines.batches import Batches, Samples, mean_model
from floral.bench.baselines.dense import relu_backward
from floral.bench.baselines.workers import Buffers, sum_over_workers
from floral.core.spec import Params

aten = torch.ops.aten

MAX_SAMPLES_PER_CONVOLUTION = 64
"""Samples in one shared convolution when the round has a single step. More samples do not fit into the cache."""


@dataclass
class Convolutions:
    """FedAvg for the model `cnn` (floral/models/cnn.py). It trains one client after another.

    If a round has only one local step, all clients start with the same weights. So several clients then share one
    convolution of at most MAX_SAMPLES_PER_CONVOLUTION samples.
    """

    data: Samples = field(repr=False)
    lr: float
    workers: int
    buffers: list[Buffers] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        x = self.data.x
        self.data = Samples(x if x.dim() == 4 else x[..., None], self.data.targets, self.data.classes)
        self.buffers = [Buffers() for _ in range(self.workers)]

    def __call__(self, params: Params, batches: Batches) -> Params:
        start = {name: channels_last(value) for name, value in params.items()}
        chunk = max(1, MAX_SAMPLES_PER_CONVOLUTION // batches.sizes[0]) if len(batches.sizes) == 1 else 1

        def work(worker: int, chunks: Sequence[Tensor]) -> Params:
            total = {name: torch.zeros_like(value) for name, value in start.items()}
            for index in chunks:
                self.train(start, index, batches.sizes, self.buffers[worker], total)
            return total

        return mean_model(start, sum_over_workers(work, batches.index.split(chunk), self.workers), batches)

    def __str__(self) -> str:
        return f"one client after another, channels last, {self.workers} × 1 threads"

    def train(self, start: Params, index: Tensor, sizes: tuple[int, ...], buffers: Buffers, total: Params) -> None:
        """Train one client for the local steps of a round, and add its final model to `total`.

        The client begins with the model `start`. In a round of one step, `index` may hold the samples of several
        clients, and only their changes to `start` are added, not their final models.
        """
        params = start
        for step, n in enumerate(sizes):
            flat = index[:, step, :n].reshape(-1)
            x = buffers.gather("x", self.data.x, flat).permute(0, 3, 1, 2)
            gradients = self.gradients(params, x, buffers.gather("target", self.data.targets, flat))
            rate = -self.lr / n
            if step == len(sizes) - 1:
                for name, gradient in gradients.items():
                    total[name].add_(gradient, alpha=rate)
            elif step == 0:
                params = {name: torch.add(value, gradients[name], alpha=rate) for name, value in start.items()}
            else:
                for name, gradient in gradients.items():
                    params[name].add_(gradient, alpha=rate)
        if len(sizes) > 1:
            for name, value in params.items():
                total[name] += value

    def gradients(self, p: Params, x: Tensor, target: Tensor) -> Params:
        """Return the gradients of the summed loss of one batch x [B, channels, H, W] for the weights `p`."""
        conv1, indices1, pooled = convolve_and_pool(x, p["conv1.weight"], p["conv1.bias"], 2)
        conv2, indices2, features = convolve_and_pool(pooled, p["conv2.weight"], p["conv2.bias"], 3)
        flat = features.flatten(1)
        hidden = torch.addmm(p["hidden.bias"], flat, p["hidden.weight"].T).clamp_(min=0)
        delta_out = self.data.output_gradient(torch.addmm(p["out.bias"], hidden, p["out.weight"].T), target, 1)
        delta_hidden = relu_backward(delta_out @ p["out.weight"], hidden)
        delta_features = channels_last((delta_hidden @ p["hidden.weight"]).view(features.shape))
        delta_features = relu_backward(delta_features, features)
        delta_pooled, weight2, bias2 = convolve_and_pool_backward(
            delta_features, conv2, indices2, 3, pooled, p["conv2.weight"], input_gradient=True
        )
        delta_pooled = relu_backward(delta_pooled, pooled)
        _, weight1, bias1 = convolve_and_pool_backward(
            delta_pooled, conv1, indices1, 2, x, p["conv1.weight"], input_gradient=False
        )
        return {
            "out.weight": delta_out.T @ hidden,
            "out.bias": delta_out.sum(0),
            "hidden.weight": delta_hidden.T @ flat,
            "hidden.bias": delta_hidden.sum(0),
            "conv2.weight": weight2,
            "conv2.bias": bias2,
            "conv1.weight": weight1,
            "conv1.bias": bias1,
        }


def channels_last(tensor: Tensor) -> Tensor:
    """Return images and kernels in channels-last memory order, and other tensors unchanged."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def convolve_and_pool(x: Tensor, weight: Tensor, bias: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a convolution, a max-pool of `size` × `size` pixels and a ReLU.

    Return three values: the output of the convolution, the indices of the maxima, and the output of the ReLU.
    """
    convolved = F.conv2d(x, weight, bias)
    pooled, indices = aten.max_pool2d_with_indices(convolved, [size, size])
    return convolved, indices, pooled.clamp_(min=0)


def convolve_and_pool_backward(
    gradient: Tensor, convolved: Tensor, indices: Tensor, size: int, x: Tensor, weight: Tensor, input_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the backward pass of the max-pool and the convolution.

    Return the gradients with respect to x (None unless `input_gradient`), weight and bias. `convolved`, the output of
    the convolution, is overwritten.
    """
    # The backward pass of max-pooling needs only the indices, so it can overwrite the input of the pooling.
    pooling = ([size, size], [size, size], [0, 0], [1, 1], False)
    aten.max_pool2d_with_indices_backward.grad_input(gradient, convolved, *pooling, indices, grad_input=convolved)
    stride, padding, dilation, transposed, output_padding, groups = [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    return aten.convolution_backward(
        convolved,
        x,
        weight,
        [len(weight)],
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        [input_gradient, True, True],
    )

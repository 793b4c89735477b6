"""The product of a convolution layer, vectorised over clients and clusters, and its gradients.

Shapes: x [m, C or 1, B, inputs, H, W], W [m or 1, C or 1, outputs, inputs, h, w] and the output or its gradient δ
[m, C, B, outputs, H', W'], for m clients and C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
"""A value for the height and one for the width."""

INPUT_ONLY = (True, False, False)
WEIGHT_ONLY = (False, True, False)
"""Which gradients of (input, weight, bias) a backward pass computes."""


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an image [B, inputs, H, W].

    The weight is W [outputs, inputs / groups, h, w]. A `transposed` convolution computes what the input gradient of a
    convolution computes; its weight is W [inputs, outputs / groups, h, w].
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    transposed: bool = False
    output_padding: Pair = (0, 0)
    """Of a transposed convolution: rows and columns appended to the result, whose size a stride leaves open."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of x with one kernel."""
        if not self.transposed:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return F.conv_transpose2d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Any:
        """Gradients of (x, weight, bias) where `needed`, None elsewhere."""
        window = self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        return torch.ops.aten.convolution_backward.default(gradient, x, weight, [gradient.shape[1]], *window, needed)

    def channels(self, inputs: int, outputs: int) -> Pair:
        """Lengths of the first two axes of a weight."""
        return (inputs, outputs // self.groups) if self.transposed else (outputs, inputs // self.groups)


@dataclass(frozen=True)
class Convolution:
    """Convolutions over one window: one call for each different kernel."""

    window: Window
    channel_axis: ClassVar[int] = 3
    """Axis of the inputs in x and of the outputs in δ."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with a bias [outputs], as [m, C, B, outputs, H', W']."""
        window = self.window
        if weight.shape[:2] == (1, 1):
            out = window(x.flatten(0, 2), channels_last(weight[0, 0]), bias)
            return out.unflatten(0, x.shape[:3])
        clients, clusters = max(len(x), len(weight)), max(x.shape[1], weight.shape[1])
        if len(weight) == 1:
            outs = [window(_at(x, 1, c).flatten(0, 1), channels_last(weight[0, c]), bias) for c in range(clusters)]
            return torch.stack([out.unflatten(0, (clients, -1)) for out in outs], 1)
        outs = [
            window(_at(x[k], 0, c), channels_last(_at(weight[k], 0, c)), bias)
            for k in range(clients)
            for c in range(clusters)
        ]
        return torch.stack(outs).unflatten(0, (clients, clusters))

    def takes_client_bias(self, weight: Tensor) -> bool:
        """Return whether `forward` can add a bias that differs between clients. A convolution never can."""
        del weight
        return False

    def add_bias(self, out: Tensor, bias: Tensor) -> None:
        """Add a bias [m or 1, C or 1, outputs] to `out` in place."""
        out.add_(bias[:, :, None, :, None, None])

    def input_gradient(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of x, [m, C, B, inputs, H, W]."""

        def back(delta: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
            return self.window.backward(delta, x, channels_last(kernel), INPUT_ONLY)[0]

        clients, clusters = gradient.shape[:2]
        if weight.shape[:2] == (1, 1):
            expanded = x.expand(clients, clusters, *x.shape[2:]).flatten(0, 2)
            return back(gradient.flatten(0, 2), expanded, weight[0, 0]).unflatten(0, gradient.shape[:3])
        if len(weight) == 1:
            gradients = [
                back(gradient[:, c].flatten(0, 1), _at(x, 1, c).flatten(0, 1), weight[0, c]).unflatten(0, (clients, -1))
                for c in range(clusters)
            ]
            return torch.stack(gradients, 1)
        gradients = [
            back(gradient[k, c], _at(x[k], 0, c), _at(weight[k], 0, c)) for k in range(clients) for c in range(clusters)
        ]
        return torch.stack(gradients).unflatten(0, (clients, clusters))

    def weight_gradients(self, gradient: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The weight gradient of every client and cluster, [m, C, outputs, inputs, h, w]; `shape` ends in (h, w)."""
        gradients = [
            self._kernel_gradient(gradient[k, c], _at(x[k], 0, c), shape)
            for k in range(len(gradient))
            for c in range(gradient.shape[1])
        ]
        return torch.stack(gradients).unflatten(0, gradient.shape[:2])

    def summed_weight_gradient(self, gradient: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The weight gradient summed over clients, [C, outputs, inputs, h, w]; `shape` ends in (h, w)."""
        return torch.stack(
            [
                self._kernel_gradient(gradient[:, c].flatten(0, 1), _at(x, 1, c).flatten(0, 1), shape)
                for c in range(gradient.shape[1])
            ]
        )

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """The bias gradient of every client and cluster, [m, C, outputs]."""
        return gradient.sum((2, 4, 5))

    def _kernel_gradient(self, gradient: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The gradient of one kernel from δ [B, outputs, …] and x [B, inputs, …]."""
        like = gradient.new_empty((*self.window.channels(x.shape[1], gradient.shape[1]), *shape[-2:]))
        return self.window.backward(gradient, x, channels_last(like), WEIGHT_ONLY)[1]


def channels_last(weight: Tensor) -> Tensor:
    """The weight in the memory layout in which convolutions of images [B, H, W, channels] are fastest.

    Copying a weight is cheap beside the convolution.
    """
    return weight.contiguous(memory_format=torch.channels_last)


def _at(tensor: Tensor, axis: int, position: int) -> Tensor:
    """Return the slice of `axis` at `position`, or the only slice if the axis has length 1."""
    return tensor.select(axis, position if tensor.shape[axis] > 1 else 0)

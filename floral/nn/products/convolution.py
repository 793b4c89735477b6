"""The convolutions of one layer for m clients and C clusters, and their gradients.

Shapes: x is [m, C or 1, B, inputs, H, W], the weight is [m or 1, C or 1, outputs, inputs, h, w], and the output and its
gradient δ are [m, C, B, outputs, H', W']. An axis has length 1 if all clients or clusters share the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
"""A value for the height and one for the width."""

INPUT_ONLY = (True, False, False)
WEIGHT_ONLY = (False, True, False)
"""Which gradients of (input, weight, bias) a backward pass computes."""
MIN_CHANNELS = 16
"""From this number of input channels on, oneDNN's weight gradient of a 1×1 kernel with a stride above 1 is safe."""


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an image [B, inputs, H, W]: stride, padding, dilation and groups.

    The weight is [outputs, inputs / groups, h, w]. With `transposed`, the operation is a transposed convolution, and
    its weight is [inputs, outputs / groups, h, w].
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    transposed: bool = False
    output_padding: Pair = (0, 0)
    """Of a transposed convolution: rows and columns appended to the result, whose size a stride leaves open."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution (or transposed convolution) of x with one kernel."""
        if not self.transposed:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return F.conv_transpose2d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Any:
        """Return the gradients of x, weight and bias. A gradient is None if `needed` is False for it."""
        if needed[1] and self._reads_few_pixels(x, weight):
            rest = self.backward(gradient, x, weight, (needed[0], False, needed[2]))
            seen = x[:, :, :: self.stride[0], :: self.stride[1]]
            return rest[0], replace(self, stride=(1, 1)).backward(gradient, seen, weight, WEIGHT_ONLY)[1], rest[2]
        window = self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        return torch.ops.aten.convolution_backward.default(gradient, x, weight, [gradient.shape[1]], *window, needed)

    def _reads_few_pixels(self, x: Tensor, weight: Tensor) -> bool:
        """Return whether the weight gradient is computed on the pixels that the kernel reads, and with stride 1.

        The result is equal. On a CPU and with fewer input channels than a block (8 or 16), oneDNN writes the pixels
        beyond the end of its memory, which stops the process or gives wrong numbers.

        Source: https://github.com/uxlfoundation/oneDNN/issues/6035
        """
        return (
            x.device.type == "cpu"
            and not self.transposed
            and self.stride != (1, 1)
            and self.padding == (0, 0)
            and weight.shape[-2:] == (1, 1)
            and weight.shape[1] < MIN_CHANNELS
        )

    def channels(self, inputs: int, outputs: int) -> Pair:
        """Return the lengths of the first two axes of a weight that maps `inputs` channels to `outputs` channels."""
        return (inputs, outputs // self.groups) if self.transposed else (outputs, inputs // self.groups)


@dataclass(frozen=True)
class Convolution:
    """The convolutions of all clients and clusters with the same window (stride, padding and so on).

    PyTorch is called once for each kernel; clients that share a kernel are computed in one call.
    """

    window: Window
    channel_axis: ClassVar[int] = 3
    """Axis of the inputs in x and of the outputs in δ."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolutions of all m clients and C clusters, as [m, C, B, outputs, H', W'].

        If a bias [outputs] is given, it is added.
        """
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
        """Return False: `forward` cannot add a bias that differs between clients. Use `add_bias` for such a bias."""
        del weight
        return False

    def add_bias(self, out: Tensor, bias: Tensor) -> None:
        """Add a bias [m or 1, C or 1, outputs] to the output `out` of m clients and C clusters, in place."""
        out.add_(bias[:, :, None, :, None, None])

    def input_gradient(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the input x from the gradient of the output.

        The result is [m, C, B, inputs, H, W], for m clients and C clusters.
        """

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
        """Return the gradient of the weight for every client and every cluster.

        The result is [m, C, outputs, inputs, h, w], for m clients and C clusters. Of `shape`, only the last two lengths
        are used: the height h and the width w of the kernel.
        """
        gradients = [
            self._kernel_gradient(gradient[k, c], _at(x[k], 0, c), shape)
            for k in range(len(gradient))
            for c in range(gradient.shape[1])
        ]
        return torch.stack(gradients).unflatten(0, gradient.shape[:2])

    def summed_weight_gradient(self, gradient: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return, for each cluster, the gradient of the weight summed over the clients.

        The result is [C, outputs, inputs, h, w], for C clusters. Of `shape`, only the last two lengths are used: the
        height h and the width w of the kernel.
        """
        return torch.stack(
            [
                self._kernel_gradient(gradient[:, c].flatten(0, 1), _at(x, 1, c).flatten(0, 1), shape)
                for c in range(gradient.shape[1])
            ]
        )

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the bias for all m clients and C clusters, as [m, C, outputs]."""
        return gradient.sum((2, 4, 5))

    def _kernel_gradient(self, gradient: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the gradient of one kernel, from the input x [B, inputs, …] and the gradient of the output [B,
        outputs, …].

        Of `shape`, only the last two lengths are used: the height and the width of the kernel.
        """
        like = gradient.new_empty((*self.window.channels(x.shape[1], gradient.shape[1]), *shape[-2:]))
        return self.window.backward(gradient, x, channels_last(like), WEIGHT_ONLY)[1]


def channels_last(weight: Tensor) -> Tensor:
    """Return the weight in PyTorch's memory format `channels_last`, in which convolutions are fastest."""
    return weight.contiguous(memory_format=torch.channels_last)


def _at(tensor: Tensor, axis: int, position: int) -> Tensor:
    """Return the slice of `axis` at `position`, or the only slice if the axis has length 1."""
    return tensor.select(axis, position if tensor.shape[axis] > 1 else 0)

"""Low-rank adaptor of a convolution: a convolution A to R channels, followed by a convolution B (arXiv 2410.03497)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from floral.adaptors.factors import EPSILON, resolve, scale_of, scaled, solve, stack, start_a, start_bias
from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn import products
from floral.nn.layers import Conv2d, ConvTranspose2d
from floral.nn.products import Pair, Window

VERSION = 1
"""Increase it when the same run gives other numbers."""


@dataclass(frozen=True)
class ConvAdaptor:
    """Adaptor of a convolution, with the factors A [R, inputs, *kernel_a] and B [outputs, R, *kernel_b] and a bias
    [outputs].

    In a mixture of C adaptors, each parameter has a leading axis C.

    For each axis of the image, one of the two kernels has length 1. So A followed by B equals one convolution, with the
    kernel K[o, i, h, w] = Σ_r B[o, r, h, w] A[r, i, h, w]. Axes of length 1 broadcast in this sum. The convolution has
    the layer's stride, padding and dilation.

    If the layer has groups, K consists of the diagonal blocks only, and each block has rank R. If the layer is a
    transposed convolution, A and B are transposed convolutions too.
    """

    layer: Conv2d | ConvTranspose2d
    kernel_a: Pair
    kernel_b: Pair
    rank: int
    bias: str | None
    fan_in: int
    """Fan-in of A, for its initialisation."""
    preconditioner: str = "matrix"
    """How `precondition` changes the gradients of A and B: "matrix" or "scalar"."""
    scale: float = 1.0
    """s = alpha/rank, by which the adaptor's change of the layer is multiplied."""
    start: str = "floral"
    """Initial values of A, see `start_a`."""

    @classmethod
    def of(
        cls,
        layer: Conv2d | ConvTranspose2d,
        rank: float | str,
        bias: str | None,
        method: str,
        rank_of: str,
        preconditioner: str = "matrix",
        alpha: float | str = "rank",
        start: str = "floral",
    ) -> ConvAdaptor:
        """Build the adaptor of `layer`; `method` says how the kernel is split between A and B (see `factor_kernels`).

        If the rank is given as a share of the weights, `rank_of` says how the size of a kernel is counted. "elements"
        counts the elements of the kernel. "dimensions" counts two, the number of its dimensions, as the published code
        does.
        """
        kernel_a, kernel_b = factor_kernels(layer, method)
        size_a, size_b = (2, 2) if rank_of == "dimensions" else (math.prod(kernel_a), math.prod(kernel_b))
        inputs, outputs = layer.inputs // layer.groups * size_a, layer.outputs // layer.groups * size_b
        resolved, bias = resolve(rank, inputs, outputs), bias if layer.bias else None
        scale = scale_of(alpha, resolved)
        return cls(layer, kernel_a, kernel_b, resolved, bias, inputs, preconditioner, scale, start)

    def init(self, stream: Stream) -> Params:
        """Return the initial parameters: A is random (see `start_a`), and B is 0."""
        params = {
            "A": start_a(self.start, stream, (self.rank, self.layer.inputs, *self.kernel_a), self.fan_in),
            "B": torch.zeros(self.layer.outputs, self.rank, *self.kernel_b),
        }
        return params | start_bias(self.bias, stream, self.layer.outputs, self.rank * math.prod(self.kernel_b))

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """Return what the mixture of C adaptors adds to the layer's kernel and bias.

        The kernels of the adaptors and their biases are summed with the mixture weights `route` [C], times the scale s.
        """
        route = scaled(route, self.scale)
        down, up = stack(mixture, route)
        up, down = expand_to_kernel(up, down)
        groups = self.layer.groups
        if self.layer.window.transposed:
            change = {"weight": torch.einsum("orhw,rihw->iohw", up, down)}
        elif groups > 1:
            blocks = up.unflatten(0, (groups, -1)), down.unflatten(1, (groups, -1))
            change = {"weight": torch.einsum("gorhw,rgihw->goihw", *blocks).flatten(0, 1)}
        else:
            change = {"weight": torch.einsum("orhw,rihw->oihw", up, down)}
        if self.bias:
            change["bias"] = route @ mixture["bias"]
        return change

    def unmerged(self, mixture: Params, route: Tensor, x: Tensor) -> Tensor:
        """Return what the mixture of C adaptors adds to the layer's output for x [B, inputs, H, W].

        The C adaptors of rank R are applied as one adaptor of rank C·R.
        """
        route = scaled(route, self.scale)
        bias = route @ mixture["bias"] if self.bias else None
        of_a, of_b = self._windows()
        if of_a.transposed or of_a.groups > 1:
            return self._unmerged_rearranged(mixture, route, x, bias)
        hidden = products.conv2d(x, mixture["A"], window=of_a, stacked="outputs")
        hidden = (hidden.unflatten(1, (len(route), -1)) * route[:, None, None, None]).flatten(1, 2)
        return products.conv2d(hidden, mixture["B"], bias, window=of_b, stacked="inputs")

    def output(self, params: Params, x: Tensor) -> Tensor:
        """Return what a single adaptor adds to the layer's output for x [B, inputs, H, W]. `params` have no axis C.

        This is `unmerged` for one adaptor with the weight 1, in fewer operations.
        """
        of_a, of_b = self._windows()
        if of_a.transposed or of_a.groups > 1:
            return self.unmerged({key: value[None] for key, value in params.items()}, x.new_ones(1), x)
        hidden = products.conv2d(x, params["A"][None], window=of_a, stacked="outputs")
        bias = params["bias"] if self.bias else None
        if self.scale != 1:
            hidden, bias = hidden * self.scale, None if bias is None else bias * self.scale
        return products.conv2d(hidden, params["B"][None], bias, window=of_b, stacked="inputs")

    def _windows(self) -> tuple[Window, Window]:
        """Return the window of convolution A and that of convolution B: stride, padding and dilation.

        Along each axis of the image, the convolution with the longer kernel has the layer's window.
        """
        layer = self.layer.window
        rows, columns = (length > 1 for length in self.kernel_a)

        def along(rows: bool, columns: bool) -> Window:
            def along_axes(pair: Pair, neutral: int) -> Pair:
                return pair[0] if rows else neutral, pair[1] if columns else neutral

            return replace(
                layer,
                stride=along_axes(layer.stride, 1),
                padding=along_axes(layer.padding, 0),
                dilation=along_axes(layer.dilation, 1),
                output_padding=along_axes(layer.output_padding, 0),
            )

        return along(rows, columns), along(not rows, not columns)

    def _unmerged_rearranged(self, mixture: Params, route: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the result of `unmerged` for a transposed convolution or a convolution with groups.

        For these layers, the axes of the factors must be rearranged first.
        """
        of_a, of_b = self._windows()
        down, up = stack(mixture, route)
        down = down.clone()  # A tape would treat a view as the parameter itself.
        if of_a.transposed:
            down, up = down.transpose(0, 1), up.transpose(0, 1)
        else:
            down = down.unflatten(1, (of_a.groups, -1)).transpose(0, 1).flatten(0, 1)
        return products.conv2d(products.conv2d(x, down, window=of_a), up, bias, window=of_b)

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Return two numbers of multiply-adds, for the two ways to apply the C adaptors.

        The first is for adaptors that are merged into the layer's kernel. The second is for adaptors that are applied
        separately.

        Merging composes the kernels of A and B once. Separate adaptors are two convolutions at every position of the
        input x, whose shape is `shape`.
        """
        components, layer = clusters * self.rank, self.layer
        positions = shape[0] * shape[-2:].numel()
        both = layer.inputs * math.prod(self.kernel_a) + layer.outputs * math.prod(self.kernel_b)
        weight = layer.inputs * layer.outputs // layer.groups * math.prod(layer.kernel)
        return components * weight, positions * components * both

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Precondition the gradients gA and gB of both factors, for each cluster.

        With `preconditioner` "matrix", they become (M_B + εI)⁻¹ gA and gB (M_A + εI)⁻¹, along the rank axis. The matrix
        M_B[r, s] = Σ B[o, r, h, w] B[o, s, h, w] sums over outputs and kernel positions, and M_A over inputs and kernel
        positions. They are the metrics of A and B in the composed kernel K. For a 1×1 kernel this is the rule of linear
        layers. If the layer has groups, each group has its own matrices.

        With "scalar", they become gA/(‖G_B‖ + ε) and gB/(‖G_A‖ + ε), as in the published code. The Gram tensor G of a
        factor has the products of its elements at equal kernel positions, summed over channels, such as
        G_B[r, s, h, w] = Σ_o B[o, r, h, w] B[o, s, h, w].

        Source: arXiv 2410.03497 and its published code, preconditioned LoRA.
        """
        down, up = mixture["A"], mixture["B"]
        if self.preconditioner == "scalar":
            gram_a = torch.einsum("crihw,csihw->crshw", down, down).flatten(1).norm(dim=1)
            gram_b = torch.einsum("corhw,coshw->crshw", up, up).flatten(1).norm(dim=1)
            shape = (-1, 1, 1, 1, 1)
            of_a = gradients["A"] / (gram_b.reshape(shape) + EPSILON)
            of_b = gradients["B"] / (gram_a.reshape(shape) + EPSILON)
            return {**gradients, "A": of_a, "B": of_b}
        rows_a, rows_b = self._rank_rows(down), self._rank_rows(up.transpose(1, 2))
        of_a = solve(rows_b @ rows_b.mT, self._rank_rows(gradients["A"]))
        of_b = solve(rows_a @ rows_a.mT, self._rank_rows(gradients["B"].transpose(1, 2)))
        return {
            **gradients,
            "A": of_a.unflatten(-1, (-1, *self.kernel_a)).transpose(1, 2).flatten(2, 3),
            "B": of_b.unflatten(-1, (-1, *self.kernel_b)).transpose(1, 2).flatten(2, 3).transpose(1, 2),
        }

    def _rank_rows(self, factor: Tensor) -> Tensor:
        """Return a factor [C, R, channels, *kernel] as matrices [C, groups, R, channels of a group · positions]."""
        return factor.unflatten(2, (self.layer.groups, -1)).transpose(1, 2).flatten(3)


def factor_kernels(layer: Conv2d | ConvTranspose2d, method: str) -> tuple[Pair, Pair]:
    """Return the kernel sizes of A and B, for one of the ConvLoRA methods of arXiv 2410.03497.

    - "in": A has the layer's kernel, B is 1×1.
    - "out": B has the layer's kernel, A is 1×1.
    - "balanced": the factor on the side with fewer channels has the layer's kernel, the other is 1×1.
    - "balanced_2d": A has the width of the kernel, B its height.
    """
    kernel, point = layer.kernel, (1, 1)
    match method:
        case "in":
            return kernel, point
        case "out":
            return point, kernel
        case "balanced":
            return (point, kernel) if layer.inputs > layer.outputs else (kernel, point)
        case "balanced_2d":
            return (1, kernel[1]), (kernel[0], 1)
    raise ValueError(f"`convolution: {method}` is unknown; use in, out, balanced or balanced_2d")


def expand_to_kernel(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Return both factors after their kernels are expanded to the height and width of the layer's kernel."""
    height, width = (max(a, b) for a, b in zip(up.shape[2:], down.shape[2:], strict=True))
    return up.expand(-1, -1, height, width), down.expand(-1, -1, height, width)

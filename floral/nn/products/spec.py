"""The description of a product: its operation, and the axes over which it is vectorised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from floral.nn.products.convolution import Convolution
from floral.nn.products.matrix_product import MatrixProduct

Stacked = Literal["", "outputs", "inputs"]
"""How C weights are used as one weight.

"outputs": [C, R, inputs, …] is used as [C·R, inputs, …]. "inputs": [C, outputs, R, …] is used as [outputs, C·R, …].
"""

X, WEIGHT, BIAS, DELTA = range(4)
"""Positions of a product's inputs."""


@dataclass(frozen=True)
class ProductSpec:
    """The operation, the rounding and the vectorised axes of one product."""

    operation: MatrixProduct | Convolution
    stacked: Stacked = ""
    levels: tuple[tuple[bool, ...], ...] = ()
    """For each vmap, from the innermost outwards: which of (x, weight, bias, delta) carry its axis.

    The outermost vmap is over clients. One inside it is over clusters.
    """
    dtype: torch.dtype | None = None
    """Type to which factors and results are rounded; None: no rounding."""

    def rounded(self, tensor: Any) -> Any:
        """Return a factor (or None) in the type in which the product is computed."""
        return tensor if tensor is None or self.dtype is None else tensor.to(self.dtype)

    def axes(self, position: int) -> tuple[bool, bool]:
        """Whether the input at `position` carries the client axis, and whether it carries the cluster axis."""
        inwards = [level[position] for level in reversed(self.levels)]
        return (*inwards, False, False)[:2]  # type: ignore[return-value]

    def vectorised(self, tensor: Tensor, position: int) -> Tensor:
        """The input at `position` as [m or 1, C or 1, …]."""
        clients, clusters = self.axes(position)
        tensor = tensor if clients else tensor.unsqueeze(0)
        return tensor if clusters else tensor.unsqueeze(1)

    def reduced(self, gradient: Tensor, position: int) -> Tensor:
        """Return a gradient [m, C, …] summed over the axes that the input at `position` does not have."""
        clients, clusters = self.axes(position)
        gradient = gradient if clusters else sum_axis(gradient, 1)
        return gradient if clients else sum_axis(gradient, 0)

    def result(self, vectorised: Tensor) -> Tensor:
        """Return an output [m, C, …] without the axes over which the product is not vectorised."""
        vectorised = vectorised if len(self.levels) > 1 else vectorised[:, 0]
        return vectorised if self.levels else vectorised[0]

    def vectorised_result(self, gradient: Tensor) -> Tensor:
        """The inverse of `result`: an output's gradient as [m, C, …]."""
        gradient = gradient if self.levels else gradient.unsqueeze(0)
        return gradient if len(self.levels) > 1 else gradient.unsqueeze(1)

    def effective_weight(self, weight: Tensor, delta: Tensor | None) -> Tensor:
        """W + delta as [m or 1, C or 1, outputs, inputs, …]."""
        used = join_stack(self.vectorised(weight, WEIGHT), self.stacked, 2)
        return used if delta is None else used + self.vectorised(delta, DELTA)


def join_stack(weight: Tensor, stacked: Stacked, axis: int = 0) -> Tensor:
    """C weights as one weight; `axis` is the axis of the C weights."""
    match stacked:
        case "outputs":
            return weight.flatten(axis, axis + 1)
        case "inputs":
            return weight.movedim(axis, axis + 1).flatten(axis + 1, axis + 2)
        case _:
            return weight


def split_stack(gradient: Tensor, stacked: Stacked, clusters: int, axis: int) -> Tensor:
    """The inverse of `join_stack` for a gradient: C gradients along `axis`."""
    match stacked:
        case "outputs":
            return gradient.unflatten(axis, (clusters, -1))
        case "inputs":
            return gradient.unflatten(axis + 1, (clusters, -1)).movedim(axis + 1, axis)
        case _:
            return gradient


def sum_axis(tensor: Tensor, axis: int) -> Tensor:
    """The sum over an axis; a view, without a copy, where its length is 1."""
    return tensor.select(axis, 0) if tensor.shape[axis] == 1 else tensor.sum(axis)

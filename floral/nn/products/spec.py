"""The description of a product: its operation, and the axes (clients, clusters) over which it is vectorised."""

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
    """The description of one product: operation, stacking of weights, vectorised axes and rounding."""

    operation: MatrixProduct | Convolution
    stacked: Stacked = ""
    levels: tuple[tuple[bool, ...], ...] = ()
    """For each vmap, from the innermost outwards: which of (x, weight, bias, delta) carry its axis.

    The outermost vmap is over clients. One inside it is over clusters.
    """
    dtype: torch.dtype | None = None
    """Type to which factors and results are rounded; None: no rounding."""

    def rounded(self, tensor: Any) -> Any:
        """Return a factor of the product in the data type in which the product is computed. None stays None."""
        return tensor if tensor is None or self.dtype is None else tensor.to(self.dtype)

    def axes(self, position: int) -> tuple[bool, bool]:
        """Return whether the input at `position` has a client axis, and whether it has a cluster axis.

        The positions are X, WEIGHT, BIAS and DELTA.
        """
        inwards = [level[position] for level in reversed(self.levels)]
        return (*inwards, False, False)[:2]  # type: ignore[return-value]

    def vectorised(self, tensor: Tensor, position: int) -> Tensor:
        """Return the input at `position` as [m or 1, C or 1, …], for m clients and C clusters.

        If it has no client axis or no cluster axis, an axis of length 1 is inserted.
        """
        clients, clusters = self.axes(position)
        tensor = tensor if clients else tensor.unsqueeze(0)
        return tensor if clusters else tensor.unsqueeze(1)

    def reduced(self, gradient: Tensor, position: int) -> Tensor:
        """Return the gradient of the input at `position`, summed over the axes that this input does not have.

        The gradient is given as [m, C, …] for m clients and C clusters. An input that is shared by all clients or by
        all clusters has no such axis.
        """
        clients, clusters = self.axes(position)
        gradient = gradient if clusters else sum_axis(gradient, 1)
        return gradient if clients else sum_axis(gradient, 0)

    def result(self, vectorised: Tensor) -> Tensor:
        """Return an output [m, C, …] without the axes over which the product is not vectorised.

        If the product is not vectorised over clusters, or not over clients either, this axis has length 1 and is
        removed.
        """
        vectorised = vectorised if len(self.levels) > 1 else vectorised[:, 0]
        return vectorised if self.levels else vectorised[0]

    def vectorised_result(self, gradient: Tensor) -> Tensor:
        """Return the gradient of an output as [m, C, …]. This is the inverse of `result`.

        The axes that `result` removed are inserted again, with length 1.
        """
        gradient = gradient if self.levels else gradient.unsqueeze(0)
        return gradient if len(self.levels) > 1 else gradient.unsqueeze(1)

    def effective_weight(self, weight: Tensor, delta: Tensor | None) -> Tensor:
        """Return the sum of the weight and its change `delta`, as [m or 1, C or 1, outputs, inputs, …].

        A stacked weight is first joined to one weight.
        """
        used = join_stack(self.vectorised(weight, WEIGHT), self.stacked, 2)
        return used if delta is None else used + self.vectorised(delta, DELTA)


def join_stack(weight: Tensor, stacked: Stacked, axis: int = 0) -> Tensor:
    """Join C weights to one weight, as described at `Stacked`. `axis` is the axis along which the C weights lie."""
    match stacked:
        case "outputs":
            return weight.flatten(axis, axis + 1)
        case "inputs":
            return weight.movedim(axis, axis + 1).flatten(axis + 1, axis + 2)
        case _:
            return weight


def split_stack(gradient: Tensor, stacked: Stacked, clusters: int, axis: int) -> Tensor:
    """Split the gradient of a joined weight into C gradients along `axis`. This is the inverse of `join_stack`."""
    match stacked:
        case "outputs":
            return gradient.unflatten(axis, (clusters, -1))
        case "inputs":
            return gradient.unflatten(axis + 1, (clusters, -1)).movedim(axis + 1, axis)
        case _:
            return gradient


def sum_axis(tensor: Tensor, axis: int) -> Tensor:
    """Return the sum of a tensor over an axis. If the axis has length 1, the result is a view, without a copy."""
    return tensor.select(axis, 0) if tensor.shape[axis] == 1 else tensor.sum(axis)

"""Which product is computed: a matrix product or a convolution, and whether it has axes for clients and clusters."""

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
    """Which product is computed: its operation, its axes for clients and clusters, and its data type.

    `stacked` says how C weights are joined to one weight.
    """

    operation: MatrixProduct | Convolution
    stacked: Stacked = ""
    levels: tuple[tuple[bool, ...], ...] = ()
    """For each vmap, from the innermost outwards: which of (x, weight, bias, delta) carry its axis.

    The outermost vmap is over clients. One inside it is over clusters.
    """
    dtype: torch.dtype | None = None
    """Type to which factors and results are rounded; None: no rounding."""

    def rounded(self, tensor: Any) -> Any:
        """Return a tensor in the data type in which the product is computed, or None if the tensor is None."""
        return tensor if tensor is None or self.dtype is None else tensor.to(self.dtype)

    def axes(self, position: int) -> tuple[bool, bool]:
        """Return whether an input of the product has a client axis, and whether it has a cluster axis.

        `position` says which input: X, WEIGHT, BIAS or DELTA (the change of the weight).
        """
        inwards = [level[position] for level in reversed(self.levels)]
        return (*inwards, False, False)[:2]  # type: ignore[return-value]

    def vectorised(self, tensor: Tensor, position: int) -> Tensor:
        """Return an input of the product as [m or 1, C or 1, …], for m clients and C clusters.

        If the input has no client axis or no cluster axis, an axis of length 1 is inserted. `position` says which input
        it is: X, WEIGHT, BIAS or DELTA (the change of the weight).
        """
        clients, clusters = self.axes(position)
        tensor = tensor if clients else tensor.unsqueeze(0)
        return tensor if clusters else tensor.unsqueeze(1)

    def reduced(self, gradient: Tensor, position: int) -> Tensor:
        """Sum the gradient of an input over the axes that the input does not have, and return the result.

        The gradient is given as [m, C, …], for m clients and C clusters. An input that all clients share has no client
        axis. One that all clusters share has no cluster axis. `position` says which input it is: X, WEIGHT, BIAS or
        DELTA (the change of the weight).
        """
        clients, clusters = self.axes(position)
        gradient = gradient if clusters else sum_axis(gradient, 1)
        return gradient if clients else sum_axis(gradient, 0)

    def result(self, vectorised: Tensor) -> Tensor:
        """Remove the client axis and the cluster axis from an output [m, C, …], if the product is not vectorised over
        them.

        A removed axis has length 1.
        """
        vectorised = vectorised if len(self.levels) > 1 else vectorised[:, 0]
        return vectorised if self.levels else vectorised[0]

    def vectorised_result(self, gradient: Tensor) -> Tensor:
        """Return the gradient of an output as [m, C, …], for m clients and C clusters.

        The axes that `result` removed from the output are inserted again, with length 1.
        """
        gradient = gradient if self.levels else gradient.unsqueeze(0)
        return gradient if len(self.levels) > 1 else gradient.unsqueeze(1)

    def effective_weight(self, weight: Tensor, delta: Tensor | None) -> Tensor:
        """Return the weight plus its change `delta`, as [m or 1, C or 1, outputs, inputs, …] for m clients and C
        clusters.

        If `stacked` is set, C weights are first joined to one weight (see `Stacked`).
        """
        used = join_stack(self.vectorised(weight, WEIGHT), self.stacked, 2)
        return used if delta is None else used + self.vectorised(delta, DELTA)


def join_stack(weight: Tensor, stacked: Stacked, axis: int = 0) -> Tensor:
    """Join C weights to one weight along the outputs or the inputs (see `Stacked`).

    `axis` is the number of the axis along which the C weights lie. If `stacked` is empty, the weight is returned
    unchanged.
    """
    match stacked:
        case "outputs":
            return weight.flatten(axis, axis + 1)
        case "inputs":
            return weight.movedim(axis, axis + 1).flatten(axis + 1, axis + 2)
        case _:
            return weight


def split_stack(gradient: Tensor, stacked: Stacked, clusters: int, axis: int) -> Tensor:
    """Split the gradient of a joined weight into the gradients of the C weights. This is the inverse of `join_stack`.

    `axis` is the number of the axis along which the C gradients lie.
    """
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

"""A list of weight gradients that are computed later (`Tape`), and the data type to which products are rounded.

Each of the two is set for the duration of a `with` block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from floral.nn.products.pending import PendingGradient

Leaf = tuple[str, str]
"""(group, name) of a trained parameter."""


@dataclass(frozen=True)
class Tape:
    """A list of the gradients of each trained parameter, which the backward pass fills.

    Each gradient is stored as two factors, which are multiplied later.
    """

    leaves: dict[int, tuple[Leaf, Tensor]]
    """Memory address → name and value of a parameter, with or without a leading client axis."""
    entries: dict[Leaf, list[PendingGradient]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, dict[str, Tensor]]) -> Tape:
        """Return an empty tape for all parameters in `values` (parameter group → name → tensor).

        The tape collects the gradients of these parameters.
        """
        named = [((group, name), tensor) for group, params in values.items() for name, tensor in params.items()]
        return cls({tensor.data_ptr(): (leaf, tensor) for leaf, tensor in named})

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Collect the gradients of all products that are computed inside the `with` block."""
        token = _TAPE.set(self)
        try:
            yield
        finally:
            _TAPE.reset(token)

    def leaf(self, weight: Tensor) -> Leaf | None:
        """Return the parameter group and the name of the trained parameter that has the same memory as `weight`.

        The shapes of the two tensors may differ in axes of length 1. The result is None if `weight` is not a trained
        parameter, but was computed from parameters.
        """
        entry = self.leaves.get(weight.data_ptr())
        return entry[0] if entry is not None and _layout(entry[1]) == _layout(weight) else None

    def record(self, leaf: Leaf, gradient: PendingGradient) -> None:
        """Add one gradient to the list of the parameter `leaf`. The gradient is stored as two factors."""
        self.entries.setdefault(leaf, []).append(gradient)


_TAPE: ContextVar[Tape | None] = ContextVar("tape", default=None)
_ROUNDING: ContextVar[torch.dtype | None] = ContextVar("rounded", default=None)


def active() -> Tape | None:
    """Return the tape of the `with` block in which the caller runs, or None outside such a block."""
    return _TAPE.get()


def rounding() -> torch.dtype | None:
    """Return the data type that the `with` block around the caller sets with `rounded`, or None without one."""
    return _ROUNDING.get()


@contextmanager
def rounded(dtype: torch.dtype | None) -> Iterator[None]:
    """Round the factors and results of all products in the `with` block to `dtype`, also in the backward pass.

    With None, nothing is rounded. Parameters, inputs, outputs and gradients keep their types.
    """
    token = _ROUNDING.set(dtype)
    try:
        yield
    finally:
        _ROUNDING.reset(token)


def _layout(tensor: Tensor) -> list[tuple[int, int]]:
    """Return the length and the stride of each axis that is longer than 1."""
    return [(size, step) for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]

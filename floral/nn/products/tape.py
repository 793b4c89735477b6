"""The tape on which weight gradients are recorded, and the data type to which products are rounded.

Both are set for the duration of a `with` block.
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
    """A tape: the trained parameters, and the pending gradients that were recorded for each of them."""

    leaves: dict[int, tuple[Leaf, Tensor]]
    """Memory address → name and value of a parameter, with or without a leading client axis."""
    entries: dict[Leaf, list[PendingGradient]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, dict[str, Tensor]]) -> Tape:
        """Make a tape for all parameters in `values` (group → name → value)."""
        named = [((group, name), tensor) for group, params in values.items() for name, tensor in params.items()]
        return cls({tensor.data_ptr(): (leaf, tensor) for leaf, tensor in named})

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record on this tape all products that are computed inside the `with` block."""
        token = _TAPE.set(self)
        try:
            yield
        finally:
            _TAPE.reset(token)

    def leaf(self, weight: Tensor) -> Leaf | None:
        """Return the group and name of the trained parameter that has the same memory as `weight`.

        The shapes of the two tensors may differ in axes of length 1. The result is None if no parameter has this
        memory, because `weight` was computed from parameters.
        """
        entry = self.leaves.get(weight.data_ptr())
        return entry[0] if entry is not None and _layout(entry[1]) == _layout(weight) else None

    def record(self, leaf: Leaf, gradient: PendingGradient) -> None:
        """Add one pending gradient to the list of a parameter."""
        self.entries.setdefault(leaf, []).append(gradient)


_TAPE: ContextVar[Tape | None] = ContextVar("tape", default=None)
_ROUNDING: ContextVar[torch.dtype | None] = ContextVar("rounded", default=None)


def active() -> Tape | None:
    """Return the tape that is recording now, or None."""
    return _TAPE.get()


def rounding() -> torch.dtype | None:
    """Return the data type to which products are rounded now, or None if they are not rounded."""
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

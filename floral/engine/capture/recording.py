"""The parts of a recording: operations, and names that stand for tensors.

The first letter of a name says where the tensor comes from. i0, i1 … are inputs of the function, c0, c1 … are constants
that the function uses, and t5, t6 … are results of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ATEN = torch.ops.aten
VIEW = ATEN.as_strided.default


@dataclass(frozen=True)
class Name:
    """The name of a tensor that is an argument or a result of a recorded operation."""

    text: str


@dataclass(frozen=True)
class Operation:
    """One recorded call of a PyTorch operation, with names in place of tensors."""

    function: Any
    args: Any
    kwargs: dict[str, Any]
    results: list[Name | None]
    """None for a result that is not a tensor."""
    returns_several: bool
    """Whether the operation returns a tuple or list."""

    @property
    def mutates(self) -> bool:
        """Whether the operation changes one of its arguments in place."""
        return self.function._schema.is_mutable

    @property
    def reads(self) -> set[str]:
        """The names of all tensors among the operation's arguments."""
        return names_in(self.args) | names_in(tuple(self.kwargs.values()))

    @property
    def writes(self) -> list[str]:
        """The names of all tensors among the operation's results."""
        return [result.text for result in self.results if result is not None]


@dataclass(frozen=True)
class Recording:
    """All operations of one call of a function, in the order in which they ran."""

    operations: list[Operation] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    layouts: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Name → shape, strides and type."""
    memory: dict[str, int] = field(default_factory=dict)
    """Name → address of its memory, which views share."""
    callers_memory: set[int] = field(default_factory=set)
    """Addresses of the memory of inputs and constants."""


def names_in(value: Any) -> set[str]:
    """Return the names of all tensors in an argument.

    Arguments are names, plain values, or nested lists and tuples of these.
    """
    if isinstance(value, Name):
        return {value.text}
    return set().union(*map(names_in, value)) if isinstance(value, tuple | list) else set()


def renamed(value: Any, names: dict[str, str]) -> Any:
    """Return an argument in which the names of tensors are replaced according to `names` (old name → new name)."""
    if isinstance(value, Name):
        return Name(names.get(value.text, value.text))
    return type(value)(renamed(part, names) for part in value) if isinstance(value, tuple | list) else value


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Return an argument in which each tensor t is replaced by `change(t)`, also inside nested lists and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(map_tensors(change, part) for part in value) if isinstance(value, tuple | list) else value

"""How samples become the arguments of a module: one tensor, or keyword arguments such as token ids and their mask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from floral.core.spec import Refused

RULE = re.compile(r"x|ids|ids != (\d+)")


@dataclass(frozen=True)
class Inputs:
    """The arguments of a module for samples x [B, *shape].

    Raises:
        Refused: the rule of an argument is unknown.
    """

    shape: tuple[int, ...]
    named: Mapping[str, str] = field(default_factory=dict)
    """Keyword argument → rule: "x", "ids" or "ids != 0". Without any, the only argument is x."""

    def __post_init__(self) -> None:
        if wrong := [name for name, rule in self.named.items() if not RULE.fullmatch(str(rule))]:
            raise Refused(
                f"`inputs: {{{wrong[0]}: {self.named[wrong[0]]}}}` is no rule; write `x` for the samples as they are, "
                "`ids` for whole numbers, or `ids != 0` for 1 where the number is not 0, otherwise 0"
            )

    def __call__(self, x: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return the positional and the keyword arguments for samples x."""
        samples = to_module(x, self.shape)
        if not self.named:
            return (samples,), {}
        return (), {name: argument(str(rule), samples) for name, rule in self.named.items()}

    def apply(self, module: nn.Module, x: Tensor) -> Any:
        """Return what the module returns for samples x."""
        positional, named = self(x)
        return module(*positional, **named)

    @property
    def of_module(self) -> tuple[int, ...]:
        """The shape of one sample as the module gets it."""
        return tuple(to_module(torch.empty(1, *self.shape, device="meta"), self.shape).shape[1:])


def argument(rule: str, x: Tensor) -> Tensor:
    """Return the argument that a rule makes of samples."""
    if rule == "x":
        return x
    ids = x.long()
    return ids if rule == "ids" else (ids != int(rule.removeprefix("ids != "))).long()


def to_module(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return samples as PyTorch's layers expect them: images [B, H, W] or [B, H, W, C] become [B, C, H, W]."""
    match len(shape):
        case 2:
            return x.unsqueeze(1)
        case 3:
            return x.movedim(-1, 1)
    return x

"""A named random stream that gives tensors: the start of a model, the draws of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from floral.core import seeds


@dataclass(frozen=True)
class Stream:
    """Random numbers that depend on (seed, purpose, counters) alone, never on what was drawn before."""

    seed: int
    purpose: str
    counters: tuple[int, ...] = ()

    def of(self, name: str) -> Stream:
        """The stream of a part: a layer, an adaptor."""
        return replace(self, purpose=f"{self.purpose}/{name}")

    def at(self, *counters: int) -> Stream:
        """The stream of one holder: a cluster, a client."""
        return replace(self, counters=(*self.counters, *counters))

    def uniform(self, name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 of `shape`, uniform on [low, high)."""
        index = np.arange(math.prod(shape), dtype=np.uint64)
        values = seeds.uniform(self.seed, f"{self.purpose}/{name}", *self.counters, index)
        return torch.from_numpy((low + (high - low) * values).astype(np.float32)).reshape(shape)

    def normal(self, name: str, shape: tuple[int, ...], deviation: float = 1.0) -> Tensor:
        """float32 of `shape`, normal with mean 0."""
        index = np.arange(math.prod(shape), dtype=np.uint64)
        values = seeds.normal(self.seed, f"{self.purpose}/{name}", *self.counters, index)
        return torch.from_numpy((deviation * values).astype(np.float32)).reshape(shape)

    def integers(self, name: str, count: int, high: int) -> Tensor:
        """int64 [count], uniform on 0 … high - 1."""
        return (self.uniform(name, (count,)).double() * high).long().clamp(max=high - 1)


class Shapes(Stream):
    """A stream for whoever only counts: tensors of the right shapes without numbers, which cost no time or memory."""

    def uniform(self, name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        del name, low, high
        return torch.empty(shape, device="meta")

    def normal(self, name: str, shape: tuple[int, ...], deviation: float = 1.0) -> Tensor:
        del name, deviation
        return torch.empty(shape, device="meta")

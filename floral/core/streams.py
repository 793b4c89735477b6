"""Named streams of random tensors, for example for the initial values of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from floral.core import seeds


@dataclass(frozen=True)
class Stream:
    """A stream of random tensors that depend only on the seed, the purpose and the counters, not on earlier draws."""

    seed: int
    purpose: str
    counters: tuple[int, ...] = ()

    def of(self, name: str) -> Stream:
        """Return the stream for a named part, for example a layer or an adaptor."""
        return replace(self, purpose=f"{self.purpose}/{name}")

    def at(self, *counters: int) -> Stream:
        """Return the stream for one cluster or client, which is given by its counters."""
        return replace(self, counters=(*self.counters, *counters))

    def uniform(self, name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a float32 tensor of `shape` with uniform values in [low, high)."""
        index = np.arange(math.prod(shape), dtype=np.uint64)
        values = seeds.uniform(self.seed, f"{self.purpose}/{name}", *self.counters, index)
        return torch.from_numpy((low + (high - low) * values).astype(np.float32)).reshape(shape)

    def normal(self, name: str, shape: tuple[int, ...], deviation: float = 1.0) -> Tensor:
        """Return a float32 tensor of `shape` with normal values of mean 0 and standard deviation `deviation`."""
        index = np.arange(math.prod(shape), dtype=np.uint64)
        values = seeds.normal(self.seed, f"{self.purpose}/{name}", *self.counters, index)
        return torch.from_numpy((deviation * values).astype(np.float32)).reshape(shape)

    def integers(self, name: str, count: int, high: int) -> Tensor:
        """Return an int64 tensor [count] with uniform values from 0 to high - 1."""
        return (self.uniform(name, (count,)).double() * high).long().clamp(max=high - 1)


class Shapes(Stream):
    """A stream of tensors without values, on the device "meta", for counting parameters without time or memory."""

    def uniform(self, name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        del name, low, high
        return torch.empty(shape, device="meta")

    def normal(self, name: str, shape: tuple[int, ...], deviation: float = 1.0) -> Tensor:
        del name, deviation
        return torch.empty(shape, device="meta")

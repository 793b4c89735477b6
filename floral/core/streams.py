"""Random tensors that depend only on a seed and on names, for example the initial values of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from floral.core import seeds


@dataclass(frozen=True)
class Stream:
    """A source of random tensors, each with a name.

    A tensor depends only on its name and on the fields of the stream, and not on tensors that were drawn earlier.
    """

    seed: int
    purpose: str
    counters: tuple[int, ...] = ()

    def of(self, name: str) -> Stream:
        """Return the stream of random tensors for a named part of a model, for example a layer or an adaptor."""
        return replace(self, purpose=f"{self.purpose}/{name}")

    def at(self, *counters: int) -> Stream:
        """Return the stream of random tensors for one cluster or client.

        `counters` holds the index of the cluster or client. It is appended to the counters of the present stream.
        """
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
    """A stream whose tensors have a shape but no values (device "meta").

    With it, the parameters of a model can be counted without the time and memory to draw them.
    """

    def uniform(self, name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        del name, low, high
        return torch.empty(shape, device="meta")

    def normal(self, name: str, shape: tuple[int, ...], deviation: float = 1.0) -> Tensor:
        del name, deviation
        return torch.empty(shape, device="meta")

"""Layers with at most one parameter: position embedding, dropout, a free parameter, and the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.core.streams import Stream


@dataclass(frozen=True)
class Position:
    """A position embedding: it adds a trained vector to the features of each position of x [B, T, features].

    There is one vector for each of `length` positions. Initial values are normal with standard deviation 0.02.
    """

    length: int
    features: int

    def init(self, stream: Stream) -> Params:
        return {"weight": stream.normal("weight", (self.length, self.features), 0.02)}

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x + params["weight"][: x.shape[1]]


@dataclass(frozen=True)
class Dropout:
    """Dropout for x [B, *shape]: in training, each entry is set to 0 with probability `rate`.

    All other entries are divided by 1 - rate.
    """

    shape: tuple[int, ...]
    rate: float = 0.5
    axis: int = 0
    """Axis of x that has the samples. It may be longer than B: a sample then has several rows of x."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise Refused(f"`dropout` is {self.rate}; set it to a number that is at least 0 and below 1")

    def init(self, stream: Stream) -> Params:
        del stream
        return {}

    def __call__(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Apply the layer to x. `uniform` [B, *shape] has a random number in [0, 1) for each entry of x."""
        if self.axis or uniform.shape != x.shape:
            uniform = uniform.reshape(-1, *x.shape[: self.axis], *x.shape[self.axis + 1 :]).movedim(0, self.axis)
        return torch.where(uniform < self.rate, torch.zeros((), dtype=x.dtype, device=x.device), x / (1 - self.rate))


@dataclass(frozen=True)
class Free:
    """A parameter outside of any layer, which a PyTorch module uses by itself. Calling the layer returns its value."""

    shape: tuple[int, ...]

    def init(self, stream: Stream) -> Params:
        return {"value": stream.normal("value", self.shape)}

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        del x
        return params["value"]


@dataclass(frozen=True)
class Identity:
    """A layer that returns its input. It takes the place of a layer that a method removes from a model."""

    def init(self, stream: Stream) -> Params:
        del stream
        return {}

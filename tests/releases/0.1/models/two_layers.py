"""Multi-layer perceptron with two hidden layers."""

import math

import torch
from torch import Tensor

from floral.nn.layers import Linear, scaled_units
from floral.nn.model import Call, Model

VERSION = 1
"""Increase it when the same run gives other numbers."""


def build(shape: tuple[int, ...], outputs: int, *, hidden: tuple[int, int], width: float = 1.0) -> Model:
    """Build the model for samples of this shape. A task gives the other arguments below its key `model`.

    Some methods compare a wider or narrower model: they multiply the layers by `width`.
    """
    first, second = (scaled_units(units, width) for units in hidden)
    layers = {"first": Linear(math.prod(shape), first), "second": Linear(first, second), "out": Linear(second, outputs)}

    def forward(call: Call, x: Tensor) -> Tensor:
        x = torch.relu(call("first", x.flatten(1)))  # x [B, *shape]
        x = torch.relu(call("second", x))
        return call("out", x)  # [B, outputs]

    return Model(layers=layers, forward=forward)

"""Multi-layer perceptron with one hidden layer, used by the MNIST, digits and synthetic tasks."""

import math

import torch
from torch import Tensor

from floral.nn.layers import Layer, Linear, scaled_units
from floral.nn.model import Call, Model
from floral.nn.norms import BatchNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""


def build(shape: tuple[int, ...], outputs: int, *, hidden: int, batch_norm: bool = False, width: float = 1.0) -> Model:
    """Build a multi-layer perceptron with one hidden layer.

    x [B, *shape] → flatten → linear → batch norm (only with `batch_norm`) → ReLU → linear → [B, outputs].
    """
    hidden = scaled_units(hidden, width)
    layers: dict[str, Layer] = {"hidden": Linear(math.prod(shape), hidden)}
    if batch_norm:
        layers["norm"] = BatchNorm(hidden)
    layers["out"] = Linear(hidden, outputs)

    def forward(call: Call, x: Tensor) -> Tensor:
        x = call("hidden", x.flatten(1))
        if batch_norm:
            x = call("norm", x)
        return call("out", torch.relu(x))

    return Model(layers=layers, forward=forward)

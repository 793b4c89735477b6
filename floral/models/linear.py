"""Model of one linear layer: linear regression on the synthetic tasks, and softmax regression on all other tasks."""

import math

from floral.core.spec import Refused
from floral.nn.layers import Linear
from floral.nn.model import Model

VERSION = 1
"""Increase it when the same run gives other numbers."""


def build(shape: tuple[int, ...], outputs: int, *, width: float = 1.0) -> Model:
    """Build a model of one linear layer, from inputs x [B, *shape] to outputs [B, outputs].

    Raises:
        Refused: `width` is not 1. The model has no hidden layer that could be widened.
    """
    if width != 1.0:
        raise Refused("a linear model has no hidden layer that could be widened; choose another model or method")
    return Model(
        layers={"out": Linear(math.prod(shape), outputs)},
        forward=lambda call, x: call("out", x.flatten(1)),
    )

"""One linear layer: the regression of the synthetic tasks, softmax regression elsewhere."""

import math

from floral.core.spec import Refused
from floral.nn.layers import Linear, Model


def build(shape: tuple[int, ...], outputs: int, *, width: float = 1.0) -> Model:
    """Build a linear model x [B, *shape] → [B, outputs].

    Raises:
        Refused: `width` is not 1; there is no hidden layer to widen.
    """
    if width != 1.0:
        raise Refused("a linear model has no hidden layer to widen; choose another model or method")
    return Model(
        layers={"out": Linear(math.prod(shape), outputs)},
        forward=lambda call, x: call("out", x.flatten(1)),
    )

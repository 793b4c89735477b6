"""The CNN for CIFAR-10 of arXiv 2410.03497: two convolutions with max-pooling, and two linear layers."""

import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Conv2d, Layer, Linear, image_size, scaled_units
from floral.nn.model import Call, Model
from floral.nn.norms import BatchNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: tuple[int, int] = (32, 64),
    hidden: int = 64,
    batch_norm: bool = False,
    width: float = 1.0,
) -> Model:
    """Build a CNN with two convolutions and two linear layers.

    x [B, H, W] or [B, H, W, colours] → conv 5×5 → pool 2 → conv 3×3 → pool 3 → linear → linear → [B, outputs]. With
    `batch_norm`, the output of each convolution is normalised. Pooling comes before ReLU, because this is cheaper and
    gives the same values.

    Raises:
        Refused: the images are too small for the convolutions and the pooling.
    """
    first, second = (scaled_units(count, width) for count in channels)
    hidden = scaled_units(hidden, width)
    height, breadth, colours = image_size(shape)
    sides = [((side - 4) // 2 - 2) // 3 for side in (height, breadth)]
    if min(sides) < 1:
        raise Refused(
            f"images of {height}×{breadth} pixels are too small for this network, which needs at least 14×14; "
            "choose another model"
        )

    def forward(call: Call, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if len(shape) == 2 else x.movedim(-1, 1)
        for i, pool in ((1, 2), (2, 3)):
            x = call(f"conv{i}", x)
            x = F.relu(F.max_pool2d(call(f"norm{i}", x) if batch_norm else x, pool))
        return call("out", F.relu(call("hidden", x.flatten(1))))

    layers: dict[str, Layer] = {
        "conv1": Conv2d(colours, first, (5, 5)),
        "conv2": Conv2d(first, second, (3, 3)),
    }
    if batch_norm:
        layers |= {"norm1": BatchNorm(first), "norm2": BatchNorm(second)}
    layers |= {"hidden": Linear(second * sides[0] * sides[1], hidden), "out": Linear(hidden, outputs)}
    return Model(layers=layers, forward=forward)

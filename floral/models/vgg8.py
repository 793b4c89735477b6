"""The VGG8 for CIFAR-100 of arXiv 2410.03497.

It has five convolutions with max-pooling, and three linear layers with dropout.
"""

import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Conv2d, Dropout, Layer, Linear, image_size, scaled_units
from floral.nn.model import Call, Model
from floral.nn.norms import BatchNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: tuple[int, int, int, int, int] = (16, 32, 64, 128, 512),
    hidden: int = 512,
    dropout: float = 0.5,
    batch_norm: bool = False,
    width: float = 1.0,
) -> Model:
    """Build a VGG8 with five convolutions and three linear layers.

    x [B, H, W] or [B, H, W, colours] → 5 × (conv 3×3 → pool 2) → 2 × (dropout → linear) → linear → [B, outputs].

    With `batch_norm`, the output of each convolution is normalised. ReLU follows every layer except the last. Pooling
    comes before ReLU, because this is cheaper and gives the same values.

    Raises:
        Refused: the images are too small for the five pools.
    """
    height, breadth, colours = image_size(shape)
    if min(height, breadth) < 32:
        raise Refused(
            f"images of {height}×{breadth} pixels are too small for this network, which needs at least 32×32; "
            "choose another model"
        )
    counts = [colours, *(scaled_units(count, width) for count in channels)]
    hidden = scaled_units(hidden, width)
    flat = counts[-1] * (height // 32) * (breadth // 32)
    layers: dict[str, Layer] = {
        f"conv{i}": Conv2d(counts[i - 1], counts[i], (3, 3), padding=(1, 1), start="normal_fan_out")
        for i in range(1, len(counts))
    }
    if batch_norm:
        layers |= {f"norm{i}": BatchNorm(counts[i]) for i in range(1, len(counts))}
    layers |= {
        "drop1": Dropout((flat,), dropout),
        "hidden1": Linear(flat, hidden),
        "drop2": Dropout((hidden,), dropout),
        "hidden2": Linear(hidden, hidden),
        "out": Linear(hidden, outputs),
    }

    def forward(call: Call, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if len(shape) == 2 else x.movedim(-1, 1)
        for i in range(1, len(counts)):
            x = call(f"conv{i}", x)
            x = F.relu(F.max_pool2d(call(f"norm{i}", x) if batch_norm else x, 2))
        x = F.relu(call("hidden1", call("drop1", x.flatten(1))))
        x = F.relu(call("hidden2", call("drop2", x)))
        return call("out", x)

    return Model(layers=layers, forward=forward)

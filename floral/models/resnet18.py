"""ResNet-18 (arXiv 1512.03385) for small images, with group norm instead of batch norm (arXiv 1910.00189)."""

import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Conv2d, Layer, Linear, image_size, scaled_units
from floral.nn.model import Call, Model
from floral.nn.norms import GroupNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""

BLOCKS = 2
"""Number of blocks in each of the four stages."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: tuple[int, int, int, int] = (64, 128, 256, 512),
    groups: int = 2,
    width: float = 1.0,
) -> Model:
    """Build a ResNet-18 for small images.

    x [B, H, W] or [B, H, W, colours] → conv 3×3 → 4 stages of 2 blocks → mean over positions → linear → [B, outputs].

    A block computes relu(x + norm(conv(relu(norm(conv(x)))))) with 3×3 convolutions without bias. Every stage except
    the first starts with a convolution of stride 2. If the convolutions of a block change the shape, a 1×1 convolution
    and a norm give the first term x the same shape. The first convolution keeps the image size and no pooling follows,
    as usual for 32×32 images.

    Raises:
        Refused: the images are too small to be halved three times, or `groups` does not divide the numbers of channels.
    """
    height, breadth, colours = image_size(shape)
    if min(height, breadth) < 8:
        raise Refused(
            f"images of {height}×{breadth} pixels are too small for this network, which needs at least 8×8; "
            "choose another model"
        )
    if odd := [count for count in channels if count % groups]:
        raise Refused(
            f"`channels: {odd[0]}` cannot be split into {groups} groups of equal size; use multiples of {groups}"
        )
    counts = [groups * scaled_units(count // groups, width) for count in channels]
    layers: dict[str, Layer] = {"stem": conv(colours, counts[0]), "stem_norm": GroupNorm(counts[0], groups)}
    strides: dict[str, int] = {}
    inputs = counts[0]
    for stage, count in enumerate(counts, start=1):
        for number in range(1, BLOCKS + 1):
            block = f"block{stage}_{number}"
            strides[block] = 2 if stage > 1 and number == 1 else 1
            layers[f"{block}.conv1"] = conv(inputs, count, stride=strides[block])
            layers[f"{block}.norm1"] = GroupNorm(count, groups)
            layers[f"{block}.conv2"] = conv(count, count)
            layers[f"{block}.norm2"] = GroupNorm(count, groups)
            if strides[block] > 1 or inputs != count:
                layers[f"{block}.short"] = conv(inputs, count, side=1, stride=strides[block])
                layers[f"{block}.short_norm"] = GroupNorm(count, groups)
            inputs = count
    layers["out"] = Linear(inputs, outputs)

    def forward(call: Call, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if len(shape) == 2 else x.movedim(-1, 1)
        x = F.relu(call("stem_norm", call("stem", x)))
        for block in strides:
            y = F.relu(call(f"{block}.norm1", call(f"{block}.conv1", x)))
            y = call(f"{block}.norm2", call(f"{block}.conv2", y))
            if f"{block}.short" in layers:
                x = call(f"{block}.short_norm", call(f"{block}.short", x))
            x = F.relu(x + y)
        return call("out", x.mean((-2, -1)))

    return Model(layers=layers, forward=forward)


def conv(inputs: int, outputs: int, *, side: int = 3, stride: int = 1) -> Conv2d:
    """Return a convolution without bias, whose padding keeps the image size if the stride is 1."""
    around = (side // 2, side // 2)
    return Conv2d(inputs, outputs, (side, side), (stride, stride), padding=around, bias=False, start="normal_fan_out")

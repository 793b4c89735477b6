"""EfficientNet-Lite0 (arXiv 1905.11946, without squeeze-and-excitation and with ReLU6), for pretrained weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Conv2d, Layer, Linear, image_size
from floral.nn.model import Call, Model
from floral.nn.norms import BatchNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""

STEM, FEATURES = 32, 1280
"""Channels after the first and after the last convolution."""
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
"""For each stage: its number of blocks, kernel size, stride of the first block, expansion, and output channels."""
EPSILON, MOMENTUM = 1e-3, 0.01
"""Constants of the batch norms."""
STATISTICS = {"mean": "running_mean", "variance": "running_var"}
"""Running statistic → its name in a file of weights."""


def build(shape: tuple[int, ...], outputs: int, *, size: int = 224, width: float = 1.0) -> Model:
    """Build an EfficientNet-Lite0 with a classification head.

    x [B, H, W] or [B, H, W, colours] → resized to size×size pixels → convolution of stride 2 → 16 blocks → convolution
    1×1 → mean over positions → linear → [B, outputs].

    A block computes project(depthwise(expand(x))), where expand and project are 1×1 convolutions. All convolutions are
    followed by batch norm, and all but project by ReLU6. A block that keeps the shape adds x. Images are resized by
    bilinear interpolation; grey images get three equal channels. There is no dropout. The layers have the names in the
    public file of weights.

    Raises:
        Refused: the method needs another width, or the images have neither one nor three channels.
    """
    _, _, colours = image_size(shape)
    if width != 1.0:
        raise Refused("the method needs a wider or narrower model, but this model has one size; use another method")
    if colours not in (1, 3):
        raise Refused(f"images with {colours} channels do not fit this model, which needs 1 or 3; choose another model")
    blocks: list[Block] = []
    inputs = STEM
    for count, kernel, stride, expansion, features in STAGES:
        for number in range(count):
            blocks.append(
                Block(f"_blocks.{len(blocks)}", inputs, features, kernel, stride if number == 0 else 1, expansion)
            )
            inputs = features
    layers: dict[str, Layer] = {"_conv_stem": conv(3, STEM, 3, 2), "_bn0": norm(STEM)}
    for block in blocks:
        layers |= block.layers
    layers |= {"_conv_head": conv(inputs, FEATURES, 1), "_bn1": norm(FEATURES), "_fc": Linear(FEATURES, outputs)}

    def forward(call: Call, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if len(shape) == 2 else x.movedim(-1, 1)
        if colours == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        x = F.relu6(call("_bn0", call("_conv_stem", padded(x, 3, 2))))
        for block in blocks:
            x = block(call, x)
        x = F.relu6(call("_bn1", call("_conv_head", x)))
        return call("_fc", x.mean((-2, -1)))

    norms = {name: layer.features for name, layer in layers.items() if isinstance(layer, BatchNorm)}
    return Model(
        layers=layers,
        forward=forward,
        head="_fc",
        names={
            f"{name}.{key}": (f"{name}.{in_file}", (features,))
            for name, features in norms.items()
            for key, in_file in STATISTICS.items()
        },
        unread=("*.num_batches_tracked",),
    )


class Block:
    """An inverted bottleneck block (arXiv 1801.04381)."""

    def __init__(self, name: str, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        self.name, self.kernel, self.stride, self.expands = name, kernel, stride, expansion > 1
        self.adds = stride == 1 and inputs == outputs
        hidden = inputs * expansion
        self.layers: dict[str, Layer] = {}
        if self.expands:
            self.layers |= {f"{name}._expand_conv": conv(inputs, hidden, 1), f"{name}._bn0": norm(hidden)}
        self.layers |= {
            f"{name}._depthwise_conv": conv(hidden, hidden, kernel, stride, groups=hidden),
            f"{name}._bn1": norm(hidden),
            f"{name}._project_conv": conv(hidden, outputs, 1),
            f"{name}._bn2": norm(outputs),
        }

    def __call__(self, call: Call, x: Tensor) -> Tensor:
        """Apply the block to x [B, inputs, H, W]."""
        y = x
        if self.expands:
            y = F.relu6(call(f"{self.name}._bn0", call(f"{self.name}._expand_conv", y)))
        y = padded(y, self.kernel, self.stride)
        y = F.relu6(call(f"{self.name}._bn1", call(f"{self.name}._depthwise_conv", y)))
        y = call(f"{self.name}._bn2", call(f"{self.name}._project_conv", y))
        return x + y if self.adds else y


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Conv2d:
    """Return a convolution without bias. Its padding keeps the image size if the stride is 1, and else is 0."""
    around = (kernel // 2, kernel // 2) if stride == 1 else (0, 0)
    return Conv2d(inputs, outputs, (kernel, kernel), (stride, stride), around, False, "normal_fan_out", groups=groups)


def norm(features: int) -> BatchNorm:
    return BatchNorm(features, EPSILON, MOMENTUM)


def padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad x [B, C, H, W] with zeros for a convolution of stride 2, so that its output has ceil(H/2) × ceil(W/2) pixels.

    TensorFlow's padding "SAME": if the number of zeros is odd, there is one more at the bottom and on the right. For
    stride 1, x is returned, because the convolution pads it evenly.
    """
    if stride == 1:
        return x
    bottom, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
    return F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))

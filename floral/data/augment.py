"""Flip and crop training images at random.

The caller passes the random numbers, so equal arguments give equal results.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from floral.core.spec import Noise

PADDING = 4
"""Width in pixels of the black border that is added before a crop of the original size (arXiv 2410.03497, CIFAR)."""

DRAWS: Mapping[str, tuple[int | str, ...]] = {
    "augment/flip": ("batch",), "augment/down": ("batch",), "augment/right": ("batch",),
}  # fmt: skip
"""Shapes of the uniform noise that `flip_crop` reads; "batch" stands for B."""


def flip_crop(x: Tensor, noise: Noise, turns: Tensor) -> Tensor:
    """Flip and crop images x [B, H, W] or [B, H, W, channels] at random, where pixel value 0 is black.

    Half of the images are mirrored left to right. Then each image gets a border of PADDING black pixels and is cropped
    to its old size at a random position: pixel (i, j) of the result is pixel (i + down, j + right) of the mirrored
    image. `down` and `right` are uniform integers from -PADDING to PADDING.

    In a task with rotated clusters, the images x are already rotated by `turns` [B] quarter turns counter-clockwise
    (then H = W). The result is the same as if the images were first flipped and cropped, and then rotated. In symbols
    it is R∘A∘R⁻¹, with the flip and crop A and the rotation R. Let p be the position of a pixel relative to the centre.
    R takes pixel p from position R p, and A takes it from Φ(p + t), with Φ = diag(1, ±1) and t = (down, right). So
    R∘A∘R⁻¹ takes it from R⁻¹ΦR p + R⁻¹Φt. After an odd number of turns, the image is therefore mirrored top to bottom,
    and the offset t is rotated too. Without turns, the result is that of A.

    `noise` holds the entries of DRAWS, each [B] and uniform on [0, 1). `torch.vmap` may add an axis to each argument.
    """
    flip = noise["augment/flip"] < 0.5
    down, right = (_offset(noise[f"augment/{name}"]) for name in ("down", "right"))
    across = torch.where(flip, -right, right)
    odd = turns % 2 == 1
    cosine = (turns == 0).long() - (turns == 2).long()
    sine = (turns == 1).long() - (turns == 3).long()
    height, width = x.shape[1:3]
    row = _source(height, flip & odd, cosine * down - sine * across)
    column = _source(width, flip & ~odd, sine * down + cosine * across)
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    first = torch.arange(len(x), device=x.device)[:, None, None] * height * width
    pixels = x.flatten(0, 2)
    pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])  # The last pixel is the black border.
    pixel = torch.where(inside, first + (row * width)[:, :, None] + column[:, None, :], len(pixels) - 1)
    return pixels.index_select(0, pixel.flatten()).reshape(x.shape)


def _offset(uniform: Tensor) -> Tensor:
    """Turn noise that is uniform on [0, 1) into uniform integers from -PADDING to PADDING.

    Rounding can make the noise exactly 1. The result is then PADDING.
    """
    offsets = 2 * PADDING + 1
    return (uniform * offsets).long().clamp(max=offsets - 1) - PADDING


def _source(size: int, mirrored: Tensor, offset: Tensor) -> Tensor:
    """Return, for each row of the cropped image, the number of the row of the original image that it shows [B, size].

    Columns work in the same way. Numbers outside 0 … size−1 stand for the black border.
    """
    line = torch.arange(size, device=offset.device)
    return torch.where(mirrored[:, None], size - 1 - line, line) + offset[:, None]

"""Random flips and crops of training images: a pure function of the images and of uniform draws."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from floral.core.spec import Noise

PADDING = 4
"""Pixels of black border out of which a crop of the image's own size is taken (arXiv 2410.03497, CIFAR)."""

DRAWS: Mapping[str, tuple[int | str, ...]] = {
    "augment/flip": ("batch",), "augment/down": ("batch",), "augment/right": ("batch",),
}  # fmt: skip
"""Shapes of the uniform inputs of `flip_crop`, "batch" for B."""


def flip_crop(x: Tensor, noise: Noise, turns: Tensor) -> Tensor:
    """Images x [B, H, W] or [B, H, W, channels] as stored, of which 0 is black, flipped and cropped before their shift.

    Half of the images are mirrored left to right, and each is then cut at a uniform place out of itself with PADDING
    black pixels around it: out(i, j) = mirrored(i + down, j + right), both uniform on -PADDING … PADDING.

    The rows of a rotated cluster are stored rotated, by `turns` [B] quarter turns counter-clockwise (H = W), and
    rotation follows augmentation: T = R∘A∘R⁻¹, where A is the above. With centred pixels p, A takes the pixel from
    Φ(p + t), Φ = diag(1, ±1), t = (down, right), so T takes it from R⁻¹ΦR p + R⁻¹Φt: after an odd number of turns the
    image is mirrored top to bottom, and the offset turns too. One gather does it all. Without turns T is A.

    draws: DRAWS, each [B], uniform on [0, 1). Under `torch.vmap` every argument may have a further axis.
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
    pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])  # the last one is what lies outside
    pixel = torch.where(inside, first + (row * width)[:, :, None] + column[:, None, :], len(pixels) - 1)
    return pixels.index_select(0, pixel.flatten()).reshape(x.shape)


def _offset(uniform: Tensor) -> Tensor:
    """Integers, uniform on -PADDING … PADDING; a uniform draw that was rounded up to 1 counts as just below."""
    places = 2 * PADDING + 1
    return (uniform * places).long().clamp(max=places - 1) - PADDING


def _source(size: int, mirrored: Tensor, offset: Tensor) -> Tensor:
    """[B, size]: the line of the image that each line of the result comes from."""
    line = torch.arange(size, device=offset.device)
    return torch.where(mirrored[:, None], size - 1 - line, line) + offset[:, None]

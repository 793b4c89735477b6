"""Small vision transformer (arXiv 2010.11929), with norms before attention and mean pooling at the end."""

import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.attention import attend, projections
from floral.nn.layers import Conv2d, Dropout, Layer, Linear, Position, image_size, scaled_units
from floral.nn.model import Call, Model
from floral.nn.norms import LayerNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    patch: int = 4,
    features: int = 64,
    heads: int = 4,
    depth: int = 4,
    hidden: int = 128,
    dropout: float = 0.0,
    width: float = 1.0,
) -> Model:
    """Build a vision transformer.

    x [B, H, W] or [B, H, W, colours] → patches → + positions → `depth` blocks → norm → mean → linear → [B, outputs].

    A convolution turns each patch of patch×patch pixels into one position. A block computes x + attention(norm x), then
    x + linear(gelu(linear(norm x))). Dropout is applied to the second term of each sum. The mean over positions
    replaces the class token (arXiv 2205.01580).

    Raises:
        Refused: the image size is not a multiple of the patch size, or `features` is not a multiple of `heads`.
    """
    height, breadth, colours = image_size(shape)
    if height % patch or breadth % patch:
        raise Refused(
            f"images of {height}×{breadth} pixels cannot be cut into patches of {patch}×{patch}; set `patch` to a "
            "common divisor of height and width"
        )
    if features % heads:
        raise Refused(f"`features: {features}` cannot be split evenly among {heads} heads; use a multiple of {heads}")
    features, hidden = heads * scaled_units(features // heads, width), scaled_units(hidden, width)
    places = (height // patch) * (breadth // patch)
    layers: dict[str, Layer] = {
        "patches": Conv2d(colours, features, (patch, patch), stride=(patch, patch)),
        "position": Position(places, features),
    }
    blocks = [f"block{number}" for number in range(1, depth + 1)]
    for block in blocks:
        layers[f"{block}.norm1"] = LayerNorm(features)
        layers |= projections(f"{block}.attention", features, heads)
        layers[f"{block}.norm2"] = LayerNorm(features)
        layers[f"{block}.up"] = Linear(features, hidden)
        layers[f"{block}.down"] = Linear(hidden, features)
        if dropout > 0:
            layers |= {f"{block}.drop{half}": Dropout((places, features), dropout) for half in (1, 2)}
    layers |= {"norm": LayerNorm(features), "out": Linear(features, outputs)}

    def forward(call: Call, x: Tensor) -> Tensor:
        def dropped(name: str, x: Tensor) -> Tensor:
            return call(name, x) if dropout > 0 else x

        x = x.unsqueeze(1) if len(shape) == 2 else x.movedim(-1, 1)
        x = call("position", call("patches", x).flatten(2).mT)
        for block in blocks:
            x = x + dropped(f"{block}.drop1", attend(call, f"{block}.attention", call(f"{block}.norm1", x), heads))
            y = call(f"{block}.down", F.gelu(call(f"{block}.up", call(f"{block}.norm2", x))))
            x = x + dropped(f"{block}.drop2", y)
        return call("out", call("norm", x).mean(1))

    return Model(layers=layers, forward=forward)

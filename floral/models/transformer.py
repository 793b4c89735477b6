"""Small transformer language model with causal attention (arXiv 1706.03762).

The norms come before attention and linear layers (pre-norm, arXiv 2002.04745).
"""

import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.attention import attend, projections
from floral.nn.layers import Embedding, Layer, Linear, Position, scaled_units
from floral.nn.model import Call, Model
from floral.nn.norms import LayerNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""

EMBEDDING_DEVIATION = 0.02
"""Standard deviation of the initial embedding. It is small because a tied embedding also computes the logits."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    features: int = 128,
    heads: int = 4,
    depth: int = 2,
    hidden: int = 512,
    tied: bool = True,
    adapt_embedding: bool = False,
    width: float = 1.0,
) -> Model:
    """Build a transformer language model that predicts the next token.

    Token ids x [B, T] → embedding + position → `depth` blocks → norm → linear → [B, T, outputs].

    A block computes x + attention(norm x), then x + linear(gelu(linear(norm x))). A position attends to itself and to
    earlier positions. With `tied`, the last layer uses the embedding's weights.

    Raises:
        Refused: the samples are not texts.
    """
    if len(shape) != 1:
        raise Refused(
            f"samples of shape {list(shape)} are not text: a language model needs token ids of shape [T]; "
            "choose another model"
        )
    features, hidden = heads * scaled_units(round(features / heads), width), scaled_units(hidden, width)
    layers: dict[str, Layer] = {
        "embedding": Embedding(outputs, features, EMBEDDING_DEVIATION, adapted=adapt_embedding),
        "position": Position(shape[0], features),
    }
    blocks = [f"block{number}" for number in range(1, depth + 1)]
    for block in blocks:
        layers[f"{block}.norm1"] = LayerNorm(features)
        layers |= projections(f"{block}.attention", features, heads)
        layers[f"{block}.norm2"] = LayerNorm(features)
        layers[f"{block}.up"] = Linear(features, hidden)
        layers[f"{block}.down"] = Linear(hidden, features)
    layers |= {"norm": LayerNorm(features), "out": Linear(features, outputs, tied="embedding" if tied else None)}

    def forward(call: Call, x: Tensor) -> Tensor:
        x = call("position", call("embedding", x))
        for block in blocks:
            x = x + attend(call, f"{block}.attention", call(f"{block}.norm1", x), heads, causal=True)
            x = x + call(f"{block}.down", F.gelu(call(f"{block}.up", call(f"{block}.norm2", x))))
        return call("out", call("norm", x))

    return Model(layers=layers, forward=forward)

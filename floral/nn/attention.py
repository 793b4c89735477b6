"""Multi-head self-attention (arXiv 1706.03762) of declared linear layers, so that its projections can be adapted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Call, Linear


def projections(name: str, width: int, heads: int) -> dict[str, Linear]:
    """The four layers of one attention: <name>.query, .key, .value and .merge.

    Raises:
        Refused: the heads do not divide the width.
    """
    if width % heads:
        raise Refused(f"{heads} heads do not divide the width {width}")
    return {f"{name}.{part}": Linear(width, width) for part in ("query", "key", "value", "merge")}


def attend(call: Call, name: str, x: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """x [B, T, width] → [B, T, width]: softmax(Q Kᵀ / sqrt(width / heads)) V of each head, side by side, then merged.

    `causal`: place t looks at places up to t alone.
    """
    query, key, value = (
        call(f"{name}.{part}", x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("query", "key", "value")
    )
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if causal:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return call(f"{name}.merge", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

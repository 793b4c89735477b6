"""Multi-head self-attention (arXiv 1706.03762) from declared linear layers, so that adaptors can attach to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Call, Linear


def projections(name: str, width: int, heads: int) -> dict[str, Linear]:
    """Declare the four layers of one attention: <name>.query, .key, .value and .merge.

    Raises:
        Refused: the number of heads does not divide the width.
    """
    if width % heads:
        raise Refused(f"{heads} heads do not divide the width {width}; set heads to a divisor of {width}")
    return {f"{name}.{part}": Linear(width, width) for part in ("query", "key", "value", "merge")}


def attend(call: Call, name: str, x: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Apply one attention to x [B, T, width] → [B, T, width].

    Each head computes softmax(Q Kᵀ / sqrt(width / heads)) V. The heads are concatenated and merged by a linear layer.

    `causal`: position t attends only to positions up to t.
    """
    query, key, value = (
        call(f"{name}.{part}", x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("query", "key", "value")
    )
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if causal:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return call(f"{name}.merge", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

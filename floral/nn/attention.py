"""Multi-head self-attention (arXiv 1706.03762), built from declared linear layers so that adaptors can change them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.layers import Linear
from floral.nn.model import Call

PARTS = ("query", "key", "value", "merge")
"""Names of the four linear layers of an attention block."""


def projections(name: str, width: int, heads: int) -> dict[str, Linear]:
    """Declare the four linear layers of one attention block: <name>.query, <name>.key, <name>.value and <name>.merge.

    Raises:
        Refused: the number of heads does not divide the width.
    """
    if width % heads:
        raise Refused(f"{heads} heads do not divide the width {width}; set `heads` to a divisor of {width}")
    return {f"{name}.{part}": Linear(width, width) for part in PARTS}


def attend(
    call: Call,
    name: str,
    x: Tensor,
    heads: int,
    *,
    causal: bool = False,
    present: Tensor | None = None,
    positions: Tensor | None = None,
    parts: tuple[str, str, str, str] = PARTS,
) -> Tensor:
    """Apply one attention block to x [B, T, width]; the result has the same shape.

    Each head computes softmax(Q Kᵀ / sqrt(width / heads)) V from its queries Q, keys K and values V. The results of all
    heads are concatenated, and the linear layer <name>.merge is applied. With `causal`, position t uses only the
    positions up to t. With `present` [B, T], all positions use only those where it is True, for example those without
    padding. `positions` [N] limits the linear layers to N of the B·T positions. `parts` has other names for the four
    linear layers.
    """
    query, key, value = (
        call(f"{name}.{part}", x, positions).unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts[:3]
    )
    scores, width = query @ key.mT, math.sqrt(query.shape[-1])
    if present is None:
        scores = scores / width
    else:  # scaled and masked in one operation
        masked = torch.zeros_like(present, dtype=scores.dtype).masked_fill(~present, torch.finfo(scores.dtype).min)
        scores = torch.add(masked[:, None, None, :], scores, alpha=1 / width)
    if causal:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return call(f"{name}.{parts[3]}", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2), positions)

"""Parts of local steps that compute several gradients: a gradient step, and two disjoint halves of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from floral.core.spec import Batch, Noise, Params


def moved(w: Params, gradient: Params, rate: float) -> Params:
    """Return the parameters w - rate·gradient."""
    return {name: value - rate * gradient[name] for name, value in w.items()}


def halves(batch: Batch, noise: Noise) -> list[tuple[Batch, Noise]]:
    """Return the samples at even places of a batch, and those at odd places, each with their random numbers.

    If a client has no sample at an odd place, the samples at even places are also the second half.
    """
    has_second = batch.mask[1::2].any()

    def half(tensor: Tensor, place: int) -> Tensor:
        even_length = torch.cat([tensor, torch.zeros_like(tensor[: len(tensor) % 2])])
        first, second = even_length[0::2], even_length[1::2]
        return torch.where(has_second, second, first) if place else first

    return [
        (
            Batch(half(batch.x, place), half(batch.y, place), half(batch.mask, place)),
            {name: half(tensor, place) for name, tensor in noise.items()},
        )
        for place in (0, 1)
    ]

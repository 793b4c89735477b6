"""Mixtures of low-rank adaptors with other weights for each sample of a batch, or for each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from floral.adaptors.attach import Adaptors, adaptors_of
from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.linear import LinearAdaptor
from floral.core.spec import Params, Problem
from floral.nn.layers import Embedding


def gated_adaptors(problem: Problem, **adaptor: Any) -> Adaptors:
    """Return the adaptors of `adaptors_of` without those of embeddings: a gate needs numbers, but token ids are names.

    Raises:
        Refused: the model has no other layer that can be adapted.
    """
    adaptors = adaptors_of(problem, **adaptor)
    return adaptors.without(*(name for name, layer in adaptors.model.layers.items() if isinstance(layer, Embedding)))


def gate_input(x: Tensor) -> Tensor:
    """Return what the gate of a layer reads: the layer's input x [B, ..., inputs], or its mean over an image's pixels.

    An image is x [B, inputs, H, W], and its mean is [B, inputs].
    """
    return x.flatten(2).mean(-1) if x.dim() == 4 else x


def mixed_outputs(part: LinearAdaptor | ConvAdaptor, adaptors: Sequence[Params], weights: Tensor, x: Tensor) -> Tensor:
    """Return the weighted sum of what E adaptors add to the output of a layer with the input x.

    The parameters of each adaptor have a leading axis of length 1. `weights` [B, ..., E] has a row for each input that
    the gate reads (see `gate_input`).
    """
    unit = x.new_ones(1)
    shares = [share[:, None, None, None] if x.dim() == 4 else share[..., None] for share in weights.unbind(-1)]
    added = [share * part.unmerged(params, unit, x) for share, params in zip(shares, adaptors, strict=True)]
    return torch.stack(added).sum(0)

"""Mixtures of low-rank adaptors with other weights for each sample of a batch, or for each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from floral.adaptors.attach import Adaptor, Adaptors, adaptors_of
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


def gate_input(part: Adaptor, x: Tensor) -> Tensor:
    """Return what the gate of a layer with the adaptor `part` reads: the layer's input x [B, ..., inputs].

    For a convolution of images x [B, inputs, H, W], it is the mean over all pixels [B, inputs].
    """
    return x.flatten(2).mean(-1) if isinstance(part, ConvAdaptor) else x


def gate_inputs(part: Adaptor, shape: torch.Size) -> int:
    """Return the number of entries of `gate_input` for a layer's input of the given shape."""
    return (shape[:2] if isinstance(part, ConvAdaptor) else shape).numel()


def each_output(part: LinearAdaptor | ConvAdaptor, adaptors: Params, x: Tensor) -> list[Tensor]:
    """Return what each of E adaptors adds to the output of a layer with the input x.

    The parameters in `adaptors` have a leading axis of length E. The adaptors are applied one after the other, because
    a product for all of them gives other last bits than one product for each.
    """
    separate = zip(*(value.unbind(0) for value in adaptors.values()), strict=True)
    return [part.output(dict(zip(adaptors, values, strict=True)), x) for values in separate]


def mixed_outputs(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted sum of the outputs [B, ...] of E adaptors.

    `weights` [B, ..., E] has a row for each input that the gate reads (see `gate_input`).
    """
    stacked = torch.stack(list(outputs))
    share = torch.stack(weights.unbind(-1))  # and not a view, whose gradient would be summed in another order
    return (share.reshape(*share.shape, *(1,) * (stacked.dim() - share.dim())) * stacked).sum(0)

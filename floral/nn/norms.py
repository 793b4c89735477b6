"""Normalisation layers: statistics over a batch, over groups of channels of a sample, or over its features.

Each ends in a scale γ and a shift β per feature, both of which an adaptor may change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.core.streams import Stream

MOMENTUM = 0.1
EPSILON = 1e-5


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation of x [B, features, ...] over all axes but the second (arXiv 1502.03167).

    In training the batch's own mean and variance over unmasked samples; in evaluation the running ones. The running
    variance is unbiased and both move by 0.1, as in PyTorch.
    """

    features: int

    def init(self, stream: Stream) -> Params:
        del stream
        return {"weight": torch.ones(self.features), "bias": torch.zeros(self.features)}

    def statistics(self) -> Params:
        return {"mean": torch.zeros(self.features), "variance": torch.ones(self.features)}

    def __call__(
        self, params: Params, running: Params, x: Tensor, mask: Tensor | None, change: Params | None = None
    ) -> tuple[Tensor, Params]:
        """Normalised x and the running statistics after it; `mask` None is evaluation."""
        weight, bias = scale_and_shift(params, change)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        axes = (0, *range(2, x.dim()))
        if mask is None:
            mean, variance = running["mean"], running["variance"]
        else:
            counts = mask.to(x.dtype).reshape((-1, 1) + (1,) * (x.dim() - 2)).expand_as(x)
            count = counts.sum(axes).clamp(min=1)
            mean = (x * counts).sum(axes) / count
            variance = ((x - mean.reshape(shape)) ** 2 * counts).sum(axes) / count
            unbiased = variance * count / (count - 1).clamp(min=1)
            moved = {"mean": mean, "variance": unbiased}
            running = {key: old + MOMENTUM * (moved[key].detach() - old) for key, old in running.items()}
        scale = weight / torch.sqrt(variance + EPSILON)
        return (x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape), running


@dataclass(frozen=True)
class GroupNorm:
    """Normalisation of x [B, features, ...] within each sample over groups of neighbouring channels (arXiv 1803.08494).

    With as many groups as features it is instance normalisation (arXiv 1607.08022).
    """

    features: int
    groups: int

    def __post_init__(self) -> None:
        if self.features % self.groups:
            raise Refused(f"{self.features} features cannot be normalised in {self.groups} groups of equal size")

    def init(self, stream: Stream) -> Params:
        del stream
        return unscaled(self.features)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer on x [B, features, ...], its scale and shift changed by `change`."""
        weight, bias = scale_and_shift(params, change)
        shape = (-1, *(1,) * (x.dim() - 2))
        return standardised(x.unflatten(1, (self.groups, -1)), 2).reshape(x.shape) * weight.reshape(
            shape
        ) + bias.reshape(shape)


def instance_norm(features: int) -> GroupNorm:
    """Each channel of each sample normalised by itself, with a scale and a shift."""
    return GroupNorm(features, groups=features)


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation of x [..., features] over its features (arXiv 1607.06450)."""

    features: int

    def init(self, stream: Stream) -> Params:
        del stream
        return unscaled(self.features)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer on x [..., features], its scale and shift changed by `change`."""
        weight, bias = scale_and_shift(params, change)
        return standardised(x, -1) * weight + bias


NORMS = BatchNorm, GroupNorm, LayerNorm


def standardised(x: Tensor, first: int) -> Tensor:
    """x less its mean over the axes from `first` on, over their deviation: one operation, which vmap batches."""
    return F.layer_norm(x, x.shape[first:], eps=EPSILON)


def unscaled(features: int) -> Params:
    """γ = 1 and β = 0."""
    return {"weight": torch.ones(features), "bias": torch.zeros(features)}


def scale_and_shift(params: Params, change: Params | None) -> tuple[Tensor, Tensor]:
    """γ and β, changed by `change`."""
    weight, bias = params["weight"], params["bias"]
    return (weight, bias) if change is None else (weight + change["weight"], bias + change["bias"])

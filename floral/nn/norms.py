"""Normalisation layers: batch norm, group norm and layer norm.

Each ends with a scale γ and a shift β per feature. An adaptor may change both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.core.streams import Stream

MOMENTUM = 0.1
"""Weight of a batch in the running statistics, as in PyTorch."""

EPSILON = 1e-5
"""Added to every variance, as in PyTorch."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation of x [B, features, ...] over all axes except the second (arXiv 1502.03167).

    Training uses the mean and variance of the batch's unmasked samples. Evaluation uses the running statistics. The
    running variance is unbiased, and both statistics move by `MOMENTUM`, as in PyTorch.
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
        """Normalised x and the running statistics after the pass; `mask` None means evaluation."""
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
    """Normalisation of x [B, features, ...] per sample and group of neighbouring channels (arXiv 1803.08494).

    With one group per feature this is instance normalisation (arXiv 1607.08022).
    """

    features: int
    groups: int

    def __post_init__(self) -> None:
        if self.features % self.groups:
            raise Refused(
                f"{self.features} features cannot be normalised in {self.groups} groups of equal size; change groups"
            )

    def init(self, stream: Stream) -> Params:
        del stream
        return identity_start(self.features)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer applied to x [B, features, ...], with `change` added to its scale and shift."""
        weight, bias = scale_and_shift(params, change)
        shape = (-1, *(1,) * (x.dim() - 2))
        return standardise(x.unflatten(1, (self.groups, -1)), 2).reshape(x.shape) * weight.reshape(
            shape
        ) + bias.reshape(shape)


def instance_norm(features: int) -> GroupNorm:
    """Instance normalisation: each channel of each sample on its own (arXiv 1607.08022)."""
    return GroupNorm(features, groups=features)


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation of x [..., features] over its features (arXiv 1607.06450)."""

    features: int

    def init(self, stream: Stream) -> Params:
        del stream
        return identity_start(self.features)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer applied to x [..., features], with `change` added to its scale and shift."""
        weight, bias = scale_and_shift(params, change)
        return standardise(x, -1) * weight + bias


NORMS = BatchNorm, GroupNorm, LayerNorm


def standardise(x: Tensor, first: int) -> Tensor:
    """Standardise x over its axes from `first` on: subtract the mean, divide by the standard deviation.

    This is one operation, which vmap can batch.
    """
    return F.layer_norm(x, x.shape[first:], eps=EPSILON)


def identity_start(features: int) -> Params:
    """Scale γ = 1 and shift β = 0."""
    return {"weight": torch.ones(features), "bias": torch.zeros(features)}


def scale_and_shift(params: Params, change: Params | None) -> tuple[Tensor, Tensor]:
    """Scale γ and shift β with `change` added."""
    weight, bias = params["weight"], params["bias"]
    return (weight, bias) if change is None else (weight + change["weight"], bias + change["bias"])

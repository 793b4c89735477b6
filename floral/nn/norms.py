"""Normalisation layers: batch norm, group norm and layer norm.

Each layer multiplies the normalised features by a scale γ, and adds a shift β. An adaptor may change both.
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
    """Batch normalisation of x [B, features, ...]: each feature is normalised over all other axes (arXiv 1502.03167).

    Training uses the mean and variance of the batch, without padding. Evaluation uses running statistics. In each
    training step, the running statistics move towards the mean and the unbiased variance of the batch by the factor
    `momentum`, as in PyTorch.
    """

    features: int
    epsilon: float = EPSILON
    momentum: float = MOMENTUM
    affine: bool = True
    """Whether the layer has a scale and a shift."""

    def init(self, stream: Stream) -> Params:
        del stream
        return identity_start(self.features) if self.affine else {}

    def statistics(self) -> Params:
        return {"mean": torch.zeros(self.features), "variance": torch.ones(self.features)}

    def __call__(
        self, params: Params, running: Params, x: Tensor, mask: Tensor | None, change: Params | None = None
    ) -> tuple[Tensor, Params]:
        """Return the normalised x, and the running statistics after this batch.

        If `mask` is None, the layer is evaluated: x is normalised with the running statistics, which do not change.
        """
        if not self.affine:
            params = {"weight": x.new_ones(self.features), "bias": x.new_zeros(self.features)}
        weight, bias = scale_and_shift(params, change)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        axes = (0, *range(2, x.dim()))
        if mask is None:
            mean, variance = running["mean"], running["variance"]
        else:
            mask = mask.repeat_interleave(len(x) // len(mask)) if len(x) != len(mask) else mask  # several rows a sample
            counts = mask.to(x.dtype).reshape((-1, 1) + (1,) * (x.dim() - 2)).expand_as(x)
            count = counts.sum(axes).clamp(min=1)
            mean = (x * counts).sum(axes) / count
            variance = ((x - mean.reshape(shape)) ** 2 * counts).sum(axes) / count
            unbiased = variance * count / (count - 1).clamp(min=1)
            moved = {"mean": mean, "variance": unbiased}
            running = {key: old + self.momentum * (moved[key].detach() - old) for key, old in running.items()}
        scale = weight / torch.sqrt(variance + self.epsilon)
        return (x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape), running


@dataclass(frozen=True)
class GroupNorm:
    """Group normalisation of x [B, features, ...] over groups of neighbouring features (arXiv 1803.08494).

    Each group of each sample is normalised on its own. With one feature per group, this is instance normalisation
    (arXiv 1607.08022).
    """

    features: int
    groups: int
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        if self.features % self.groups:
            raise Refused(
                f"{self.features} features cannot be normalised in {self.groups} groups of equal size; "
                f"set `groups` to a divisor of {self.features}"
            )

    def init(self, stream: Stream) -> Params:
        del stream
        return identity_start(self.features)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """Apply the layer to x [B, features, ...], with the adaptor's `change` added to its scale and shift."""
        weight, bias = scale_and_shift(params, change)
        shape = (-1, *(1,) * (x.dim() - 2))
        return standardise(x.unflatten(1, (self.groups, -1)), 2, self.epsilon).reshape(x.shape) * weight.reshape(
            shape
        ) + bias.reshape(shape)


def instance_norm(features: int) -> GroupNorm:
    """Return an instance normalisation: it normalises each feature of each sample on its own (arXiv 1607.08022)."""
    return GroupNorm(features, groups=features)


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation of x [..., features]: each vector of features is normalised on its own (arXiv 1607.06450)."""

    features: int
    epsilon: float = EPSILON
    fused: bool = False
    """Whether scale and shift are applied in the same operation. This is faster and changes the last bits."""

    def init(self, stream: Stream) -> Params:
        del stream
        return identity_start(self.features)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """Apply the layer to x [..., features], with the adaptor's `change` added to its scale and shift."""
        weight, bias = scale_and_shift(params, change)
        if self.fused:
            return F.layer_norm(x, (self.features,), weight, bias, self.epsilon)
        return standardise(x, -1, self.epsilon) * weight + bias


NORMS = BatchNorm, GroupNorm, LayerNorm


def standardise(x: Tensor, first: int, epsilon: float = EPSILON) -> Tensor:
    """Standardise x over all axes from number `first` to the last one.

    The mean over these axes is subtracted, and the result is divided by the standard deviation.
    """
    return F.layer_norm(x, x.shape[first:], eps=epsilon)


def identity_start(features: int) -> Params:
    """Return the initial parameters of a normalisation layer: scale γ = 1 and shift β = 0."""
    return {"weight": torch.ones(features), "bias": torch.zeros(features)}


def scale_and_shift(params: Params, change: Params | None) -> tuple[Tensor, Tensor]:
    """Return the scale γ and the shift β of a normalisation layer, after the adaptor's `change` is added to them.

    If `change` is None, nothing is added.
    """
    weight, bias = params["weight"], params["bias"]
    return (weight, bias) if change is None else (weight + change["weight"], bias + change["bias"])

"""Adaptor of a normalisation layer: a change of the layer's scale and shift, which starts at zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn.norms import EPSILON, MOMENTUM, BatchNorm, GroupNorm, LayerNorm

VERSION = 1
"""Increase it when the same run gives other numbers."""


@dataclass(frozen=True)
class NormAdaptor:
    """Adaptor of a normalisation layer, with a scale γ_c and a shift β_c, both [features].

    In a mixture of C adaptors, both have a leading axis C. The adapted layer computes y = (γ + Σ_c π_c γ_c) x̂ + β +
    Σ_c π_c β_c, where x̂ is the normalised input, γ and β are the layer's scale and shift, and π_c are the mixture
    weights.

    The adaptor is always merged into the layer's scale and shift. A separate adaptor would normalise x a second time.

    With `own_statistics`, the adaptor of a batch norm has running statistics of its own, the mean μ_c and the variance
    σ_c². In evaluation it then adds γ_c (x - μ_c)/σ_c + β_c, as the published code does. Without `own_statistics` it
    uses the layer's statistics, which is the aim of the published reparameterisation. In training there is no
    difference, because both kinds use the statistics of the batch.
    """

    features: int
    own_statistics: bool = False
    scale: ClassVar[float] = 1.0
    """The scale alpha/rank of low-rank adaptors does not apply, because this adaptor has no rank."""

    @classmethod
    def of(cls, layer: BatchNorm | GroupNorm | LayerNorm, *, own_statistics: bool) -> NormAdaptor:
        """Build the adaptor of `layer`; `own_statistics` has an effect on batch norm only."""
        return cls(layer.features, own_statistics and isinstance(layer, BatchNorm))

    def init(self, stream: Stream) -> Params:
        del stream
        return {"weight": torch.zeros(self.features), "bias": torch.zeros(self.features)}

    def statistics(self) -> Params:
        """Return the initial running statistics of the adaptor; empty without `own_statistics`."""
        return (
            {"mean": torch.zeros(self.features), "variance": torch.ones(self.features)} if self.own_statistics else {}
        )

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """Return what the mixture of C adaptors adds to the layer's scale and shift.

        These are the sums of the adaptors' scales and shifts with the mixture weights `route` [C].
        """
        return {name: route @ mixture[name] for name in ("weight", "bias")}

    def merged_in_evaluation(self, mixture: Params, route: Tensor, statistics: Params, running: Params) -> Params:
        """Return what the mixture of C adaptors adds to the layer's scale and shift in evaluation.

        This function is for adaptors with running statistics of their own.

        `statistics` [C, features] holds the adaptors' running statistics. `running` [features] holds the running
        statistics of the layer, by which the layer normalises its input.
        """
        scale = mixture["weight"] / torch.sqrt(statistics["variance"] + EPSILON)
        shift = mixture["bias"] + scale * (running["mean"] - statistics["mean"])
        return {"weight": route @ scale * torch.sqrt(running["variance"] + EPSILON), "bias": route @ shift}

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Return the number of multiply-adds for applying the C adaptors, twice.

        Other adaptors return one number for merging into the layer's weight, and one for applying the adaptors
        separately. Here the two are equal, because adaptors of normalisation layers are always merged.
        """
        del shape
        return 2 * clusters * self.features, 2 * clusters * self.features

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Return the gradients unchanged, because the adaptor has no product B A to precondition."""
        del mixture
        return gradients


def moved(statistics: Params, before: Params, after: Params) -> Params:
    """Return the adaptors' running statistics [C, features] after a training pass moved them towards those of the
    batch.

    They move with the same momentum as the layer's statistics. `before` and `after` [features] are the layer's
    statistics before and after its move, from which the statistics of the batch follow.
    """
    return {
        name: old + (after[name] - before[name]) + MOMENTUM * (before[name] - old) for name, old in statistics.items()
    }

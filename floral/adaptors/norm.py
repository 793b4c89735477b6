"""Adaptor of a normalisation layer: a change of its scale and shift, which starts at zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn.norms import EPSILON, MOMENTUM, BatchNorm, GroupNorm, LayerNorm


@dataclass(frozen=True)
class NormAdaptor:
    """Norm adaptor: scale γ_c and shift β_c, both [features]. A mixture has a leading axis C on each.

    The adapted layer computes y = (γ + Σ_c π_c γ_c) x̂ + β + Σ_c π_c β_c.

    The adaptor is always merged into the layer's scale and shift: beside the layer, x would be normalised twice.

    With `own_statistics`, the adaptor of a batch norm has running statistics μ_c and σ_c². In evaluation it then adds
    γ_c (x - μ_c)/σ_c + β_c, as the published code does. Without them it uses the layer's statistics, which is the aim
    of the published reparameterisation. In training both use the statistics of the batch and are equal.
    """

    features: int
    own_statistics: bool = False

    @classmethod
    def of(cls, layer: BatchNorm | GroupNorm | LayerNorm, *, own_statistics: bool) -> NormAdaptor:
        """Build the adaptor of `layer`; `own_statistics` has an effect on batch norm only."""
        return cls(layer.features, own_statistics and isinstance(layer, BatchNorm))

    def init(self, stream: Stream) -> Params:
        del stream
        return {"weight": torch.zeros(self.features), "bias": torch.zeros(self.features)}

    def statistics(self) -> Params:
        """The initial running statistics; empty without `own_statistics`."""
        return (
            {"mean": torch.zeros(self.features), "variance": torch.ones(self.features)} if self.own_statistics else {}
        )

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """The change of the layer's scale and shift."""
        return {name: route @ mixture[name] for name in ("weight", "bias")}

    def merged_in_evaluation(self, mixture: Params, route: Tensor, statistics: Params, running: Params) -> Params:
        """The change of the layer's scale and shift in evaluation, for adaptors with their own statistics.

        `statistics` [C, features] are the adaptors', `running` [features] the layer's, by which x̂ is normalised.
        """
        scale = mixture["weight"] / torch.sqrt(statistics["variance"] + EPSILON)
        shift = mixture["bias"] + scale * (running["mean"] - statistics["mean"])
        return {"weight": route @ scale * torch.sqrt(running["variance"] + EPSILON), "bias": route @ shift}

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Multiply-adds of C adaptors: (merged, beside the layer). Norm adaptors are always merged."""
        del shape
        return 2 * clusters * self.features, 2 * clusters * self.features

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """The unchanged gradients: there is no product to precondition."""
        del mixture
        return gradients


def moved(statistics: Params, before: Params, after: Params) -> Params:
    """Move the adaptors' statistics [C, features] by the momentum step that the layer's statistics made.

    `before` and `after` [features] are the layer's, from which the statistics of the batch follow.
    """
    return {
        name: old + (after[name] - before[name]) + MOMENTUM * (before[name] - old) for name, old in statistics.items()
    }

"""Adaptor of a normalisation layer: an additive change of its scale and shift, both zero at the start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn.norms import EPSILON, MOMENTUM, BatchNorm, GroupNorm, LayerNorm


@dataclass(frozen=True)
class NormAdaptor:
    """γ_c and β_c [features]: y = (γ + Σ_c π_c γ_c) x̂ + β + Σ_c π_c β_c; a mixture carries a leading axis C on each.

    It always goes into the layer's own scale and shift: beside the layer, x would be normalised a second time.

    An adaptor of a batch norm may have running statistics of its `own`, μ_c and σ_c². In evaluation it then adds
    γ_c (x - μ_c)/σ_c + β_c, as the published code does; without, both it and the layer take the layer's, which is what
    the published reparameterisation is after. In training both take those of the batch and are the same.
    """

    features: int
    own_statistics: bool = False

    @classmethod
    def of(cls, layer: BatchNorm | GroupNorm | LayerNorm, *, own_statistics: bool) -> NormAdaptor:
        """`own`: with running statistics, if the layer has any."""
        return cls(layer.features, own_statistics and isinstance(layer, BatchNorm))

    def init(self, stream: Stream) -> Params:
        del stream
        return {"weight": torch.zeros(self.features), "bias": torch.zeros(self.features)}

    def statistics(self) -> Params:
        """Running statistics at the start; empty unless it has its own."""
        return (
            {"mean": torch.zeros(self.features), "variance": torch.ones(self.features)} if self.own_statistics else {}
        )

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """Change of the layer's scale and shift."""
        return {name: route @ mixture[name] for name in ("weight", "bias")}

    def served(self, mixture: Params, route: Tensor, own: Params, running: Params) -> Params:
        """The same in evaluation for statistics [C, features] of the adaptors' own: of x̂ normalised by the layer's."""
        scale = mixture["weight"] / torch.sqrt(own["variance"] + EPSILON)
        shift = mixture["bias"] + scale * (running["mean"] - own["mean"])
        return {"weight": route @ scale * torch.sqrt(running["variance"] + EPSILON), "bias": route @ shift}

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Multiply-adds of C adaptors, which are always merged."""
        del shape
        return 2 * clusters * self.features, 2 * clusters * self.features

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """The gradients as they are: there is no product to condition."""
        del mixture
        return gradients


def moved(own: Params, before: Params, after: Params) -> Params:
    """Statistics of adaptors [C, features] after a pass that moved the layer's towards those of the batch by the
    momentum: the same step from where they are."""
    return {name: old + (after[name] - before[name]) + MOMENTUM * (before[name] - old) for name, old in own.items()}

"""Low-rank adaptor of an embedding (arXiv 2410.03497).

The adaptor adds B A[:, x] to the embedding of token x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.adaptors.factors import resolve, scale_of, scaled, stack
from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn import products
from floral.nn.layers import Embedding

VERSION = 1
"""Increase it when the same run gives other numbers."""


@dataclass(frozen=True)
class EmbeddingAdaptor:
    """Adaptor of an embedding, with the factors A [R, vocabulary] and B [features, R].

    In a mixture of C adaptors, both have a leading axis C.
    """

    vocabulary: int
    features: int
    rank: int
    scale: float = 1.0
    """s = alpha/rank, by which the adaptor's change of the layer is multiplied."""
    start: str = "floral"
    """Initial values of A: "gaussian", or any other word for standard normal ones."""

    @classmethod
    def of(
        cls, layer: Embedding, rank: float | str, alpha: float | str = "rank", start: str = "floral"
    ) -> EmbeddingAdaptor:
        resolved = resolve(rank, layer.vocabulary, layer.features)
        return cls(layer.vocabulary, layer.features, resolved, scale_of(alpha, resolved), start)

    def init(self, stream: Stream) -> Params:
        """Return the initial parameters: A is normal, with standard deviation 1/R if `start` is "gaussian", else 1.

        B is 0. In the package peft, the B of an embedding is normal and A is 0. Here B is 0 in all layers, because
        methods that train only B, or restart it at 0, would otherwise never change the embedding.
        """
        deviation = 1 / self.rank if self.start == "gaussian" else 1.0
        return {
            "A": stream.normal("A", (self.rank, self.vocabulary), deviation),
            "B": torch.zeros(self.features, self.rank),
        }

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """Return what the mixture of C adaptors adds to the layer's weight [vocabulary, features].

        The change is s (Σ_c π_c B_c A_c)ᵀ, where `route` holds the mixture weights π. It is computed as one product of
        rank C·R.
        """
        route = scaled(route, self.scale)
        down, up = stack(mixture, route)
        return {"weight": (up @ down).mT}

    def unmerged(self, mixture: Params, route: Tensor, x: Tensor) -> Tensor:
        """Return what the mixture of C adaptors adds to the layer's output for token ids x [...].

        The C adaptors of rank R are applied as one adaptor of rank C·R. `route` [C] holds the mixture weights.
        """
        route = scaled(route, self.scale)
        hidden = F.embedding(x.long(), mixture["A"].flatten(0, 1).mT)
        hidden = (hidden.unflatten(-1, (len(route), -1)) * route[:, None]).flatten(-2)
        return products.linear(hidden, mixture["B"], stacked="inputs")

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Return two numbers of multiply-adds, for the two ways to apply the C adaptors.

        The first is for adaptors that are merged into the layer's weight. The second is for adaptors that are applied
        separately.

        `shape` is the shape of the layer's input.
        """
        components = clusters * self.rank
        return components * self.vocabulary * self.features, shape.numel() * components * self.features

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Return the gradients unchanged, because the published code does not precondition embeddings."""
        del mixture
        return gradients

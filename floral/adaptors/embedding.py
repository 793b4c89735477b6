"""Low-rank adaptor of an embedding: for token x it adds B A[:, x] (arXiv 2410.03497)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.adaptors.factors import resolve, stack
from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn import products
from floral.nn.layers import Embedding


@dataclass(frozen=True)
class EmbeddingAdaptor:
    """Embedding adaptor: A [R, vocabulary], B [features, R]. A mixture has a leading axis C on each."""

    vocabulary: int
    features: int
    rank: int

    @classmethod
    def of(cls, layer: Embedding, rank: float | str) -> EmbeddingAdaptor:
        return cls(layer.vocabulary, layer.features, resolve(rank, layer.vocabulary, layer.features))

    def init(self, stream: Stream) -> Params:
        """Initial parameters: A ~ N(0, 1), B = 0."""
        return {
            "A": stream.normal("A", (self.rank, self.vocabulary)),
            "B": torch.zeros(self.features, self.rank),
        }

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """The change of the layer's weight [vocabulary, features]: (Σ_c π_c B_c A_c)ᵀ as one product of rank C·R."""
        down, up = stack(mixture, route)
        return {"weight": (up @ down).mT}

    def unmerged(self, mixture: Params, route: Tensor, x: Tensor) -> Tensor:
        """The change of the layer's output on x [...], computed as one adaptor of rank C·R with π between A and B."""
        hidden = F.embedding(x.long(), mixture["A"].flatten(0, 1).mT)
        hidden = (hidden.unflatten(-1, (len(route), -1)) * route[:, None]).flatten(-2)
        return products.linear(hidden, mixture["B"], stacked="inputs")

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Multiply-adds of C adaptors for x of `shape`: (merged, beside the layer)."""
        components = clusters * self.rank
        return components * self.vocabulary * self.features, shape.numel() * components * self.features

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """The unchanged gradients: the published code does not precondition embeddings."""
        del mixture
        return gradients

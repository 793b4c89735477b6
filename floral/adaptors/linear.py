"""Low-rank adaptor of a linear layer: y += B A x + b (arXiv 2106.09685; mixtures: arXiv 2410.03497)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from floral.adaptors.factors import EPSILON, resolve, stack, start_bias
from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn import products
from floral.nn.layers import Linear


@dataclass(frozen=True)
class LinearAdaptor:
    """Linear adaptor: A [R, inputs], B [outputs, R], bias [outputs]. A mixture has a leading axis C on each."""

    inputs: int
    outputs: int
    rank: int
    bias: str | None
    """Start of the bias: None (no bias), "zero" or "uniform"."""
    steps: int = 1
    """How often one forward pass applies the layer."""

    @classmethod
    def of(cls, layer: Linear, rank: float | str, bias: str | None) -> LinearAdaptor:
        resolved = resolve(rank, layer.inputs, layer.outputs)
        return cls(layer.inputs, layer.outputs, resolved, bias if layer.bias else None, layer.steps)

    def init(self, stream: Stream) -> Params:
        """Initial parameters: A ~ U(±sqrt(6/inputs)), B = 0.

        The adaptor starts as zero, unless the bias has the official "uniform" start.
        """
        bound = math.sqrt(6 / self.inputs)
        params = {
            "A": stream.uniform("A", (self.rank, self.inputs), -bound, bound),
            "B": torch.zeros(self.outputs, self.rank),
        }
        return params | start_bias(self.bias, stream, self.outputs, fan_in=self.rank)

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """The change of the layer's weight and bias: Σ_c π_c B_c A_c and Σ_c π_c b_c, as one product of rank C·R."""
        down, up = stack(mixture, route)
        change = {"weight": up @ down}
        if self.bias:
            change["bias"] = route @ mixture["bias"]
        return change

    def unmerged(self, mixture: Params, route: Tensor, x: Tensor) -> Tensor:
        """The change of the layer's output on x [B, inputs], as one adaptor of rank C·R with π between A and B."""
        hidden = products.linear(x, mixture["A"], stacked="outputs")
        hidden = (hidden.unflatten(-1, (len(route), -1)) * route[:, None]).flatten(-2)
        bias = route @ mixture["bias"] if self.bias else None
        return products.linear(hidden, mixture["B"], bias, stacked="inputs")

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Multiply-adds of C adaptors for x of `shape`: (merged, beside the layer)."""
        components = clusters * self.rank
        merged = components * self.inputs * self.outputs
        return merged, self.steps * shape[:-1].numel() * components * (self.inputs + self.outputs)

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Precondition the gradients of each cluster: gA ← (BᵀB + εI)⁻¹ gA, gB ← gB (AAᵀ + εI)⁻¹.

        Source: arXiv 2410.03497, preconditioned LoRA.
        """
        down, up = mixture["A"], mixture["B"]
        of_a = solve(up.mT @ up, gradients["A"])
        of_b = solve(down @ down.mT, gradients["B"].mT).mT
        return {**gradients, "A": of_a, "B": of_b}


def solve(gram: Tensor, right: Tensor) -> Tensor:
    """Solve (G + εI) Y = X for Gram matrices G [C, R, R] and X [C, R, n]; for R = 1 this is a division.

    The result is NaN where G + εI is singular in this precision. Then the factors are so large that ε is lost, and the
    run has diverged.
    """
    if gram.shape[-1] == 1:
        return right / (gram + EPSILON)
    ridge = EPSILON * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solved, failed = torch.linalg.solve_ex(gram + ridge, right)
    return torch.where((failed == 0)[..., None, None], solved, torch.nan)

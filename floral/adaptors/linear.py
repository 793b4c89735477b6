"""Low-rank adaptor of a linear layer, which adds s·(B A x + b) to the layer's output (arXiv 2106.09685).

A weighted sum of several such adaptors is described in arXiv 2410.03497.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from floral.adaptors.factors import resolve, scale_of, scaled, solve, stack, start_a, start_bias
from floral.core.spec import Params
from floral.core.streams import Stream
from floral.nn import products
from floral.nn.layers import Linear

VERSION = 1
"""Increase it when the same run gives other numbers."""


@dataclass(frozen=True)
class LinearAdaptor:
    """Adaptor of a linear layer, with the factors A [R, inputs] and B [outputs, R] and a bias [outputs].

    In a mixture of C adaptors, each parameter has a leading axis C.
    """

    inputs: int
    outputs: int
    rank: int
    bias: str | None
    """Start of the bias: None (no bias), "zero" or "uniform"."""
    steps: int = 1
    """How often one forward pass applies the layer."""
    scale: float = 1.0
    """s = alpha/rank, by which the adaptor's change of the layer is multiplied."""
    start: str = "floral"
    """Initial values of A, see `start_a`."""

    @classmethod
    def of(
        cls,
        layer: Linear,
        rank: float | str,
        bias: str | None,
        alpha: float | str = "rank",
        start: str = "floral",
    ) -> LinearAdaptor:
        resolved = resolve(rank, layer.inputs, layer.outputs)
        bias = bias if layer.bias else None
        return cls(layer.inputs, layer.outputs, resolved, bias, layer.steps, scale_of(alpha, resolved), start)

    def init(self, stream: Stream) -> Params:
        """Return the initial parameters: A is random (see `start_a`), and B is 0.

        So the adaptor changes nothing at first, unless its bias starts with uniform values, as in the published code.
        """
        params = {
            "A": start_a(self.start, stream, (self.rank, self.inputs), self.inputs),
            "B": torch.zeros(self.outputs, self.rank),
        }
        return params | start_bias(self.bias, stream, self.outputs, fan_in=self.rank)

    def merged(self, mixture: Params, route: Tensor) -> Params:
        """Return what the mixture of C adaptors adds to the layer's weight and bias.

        `route` holds the mixture weights π. The weight changes by s Σ_c π_c B_c A_c, computed as one product of rank
        C·R. The bias changes by s Σ_c π_c b_c.
        """
        route = scaled(route, self.scale)
        down, up = stack(mixture, route)
        change = {"weight": up @ down}
        if self.bias:
            change["bias"] = route @ mixture["bias"]
        return change

    def unmerged(self, mixture: Params, route: Tensor, x: Tensor) -> Tensor:
        """Return what the mixture of C adaptors adds to the layer's output for x [B, inputs].

        The C adaptors of rank R are applied as one adaptor of rank C·R. `route` [C] holds the mixture weights.
        """
        route = scaled(route, self.scale)
        hidden = products.linear(x, mixture["A"], stacked="outputs")
        hidden = (hidden.unflatten(-1, (len(route), -1)) * route[:, None]).flatten(-2)
        bias = route @ mixture["bias"] if self.bias else None
        return products.linear(hidden, mixture["B"], bias, stacked="inputs")

    def output(self, params: Params, x: Tensor) -> Tensor:
        """Return what a single adaptor adds to the layer's output for x [B, inputs]. `params` have no axis C.

        This is `unmerged` for one adaptor with the weight 1, in fewer operations.
        """
        hidden = products.linear(x, params["A"][None], stacked="outputs")
        bias = params["bias"] if self.bias else None
        if self.scale != 1:
            hidden, bias = hidden * self.scale, None if bias is None else bias * self.scale
        return products.linear(hidden, params["B"][None], bias, stacked="inputs")

    def multiply_adds(self, shape: torch.Size, clusters: int) -> tuple[int, int]:
        """Return two numbers of multiply-adds, for the two ways to apply the C adaptors.

        The first is for adaptors that are merged into the layer's weight. The second is for adaptors that are applied
        separately.

        `shape` is the shape of the layer's input.
        """
        components = clusters * self.rank
        merged = components * self.inputs * self.outputs
        return merged, self.steps * shape[:-1].numel() * components * (self.inputs + self.outputs)

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Multiply the gradient of each factor by the inverse of the other factor's Gram matrix, for each cluster.

        The gradients become (BᵀB + εI)⁻¹ gA and gB (AAᵀ + εI)⁻¹. Here gA and gB are the gradients of A and B, and ε is
        a small constant that makes the inverse exist. The Gram matrices leave out the scale s.

        Source: arXiv 2410.03497, preconditioned LoRA.
        """
        down, up = mixture["A"], mixture["B"]
        of_a = solve(up.mT @ up, gradients["A"])
        of_b = solve(down @ down.mT, gradients["B"].mT).mT
        return {**gradients, "A": of_a, "B": of_b}

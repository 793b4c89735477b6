"""The matrix products of one linear layer for m clients and C clusters, and their gradients.

Shapes: x is [m, C or 1, …, inputs], the weight W is [m or 1, C or 1, outputs, inputs], and the output and its gradient
δ are [m, C, …, outputs]. An axis has length 1 if all clients or clusters share the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class MatrixProduct:
    """The products y = x Wᵀ + bias of a linear layer for all clients and clusters.

    If all clients share a weight W, the samples of all clients are multiplied by it in a single product.
    """

    channel_axis: ClassVar[int] = -1
    """Axis of the inputs in x and of the outputs in δ."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + bias for all m clients and C clusters, as [m, C, …, outputs].

        The bias is [outputs]. If `takes_client_bias` returns True, it may also be [m, C or 1, outputs].
        """
        middle = x.shape[2:-1]
        clients, clusters = max(len(x), len(weight)), max(x.shape[1], weight.shape[1])
        if len(weight) > 1 or clients == 1:
            inputs, matrices = (
                t.expand(clients, clusters, *t.shape[2:]).flatten(0, 1) for t in (x.flatten(2, -2), weight)
            )
            if bias is not None and bias.dim() > 1:
                bias = bias.expand(clients, clusters, -1).flatten(0, 1)[:, None]
            return _batched(inputs, matrices, bias).reshape(clients, clusters, *middle, -1)
        if weight.shape[1] == 1:
            out = F.linear(x.reshape(-1, x.shape[-1]), weight[0, 0], bias)
            return out.reshape(clients, clusters, *middle, -1)
        out = _batched(_by_cluster(x).expand(clusters, -1, -1), weight[0], bias)
        return out.reshape(clusters, clients, *middle, -1).transpose(0, 1)

    def takes_client_bias(self, weight: Tensor) -> bool:
        """Return whether `forward` can add a bias that differs between clients. It can if the weights differ between
        clients too.
        """
        return len(weight) > 1

    def add_bias(self, out: Tensor, bias: Tensor) -> None:
        """Add a bias [m or 1, C or 1, outputs] to the output `out` of m clients and C clusters, in place."""
        out.add_(bias.reshape(*bias.shape[:2], *(1,) * (out.dim() - 3), bias.shape[2]))

    def input_gradient(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient δ W of the input x, where δ is the gradient of the output.

        The result is [m, C, …, inputs], for m clients and C clusters. If all clusters share x, it may already be summed
        over the clusters; it is then [m, 1, …, inputs].
        """
        clients, clusters, *middle, _ = gradient.shape
        if len(weight) > 1 or clients == 1:
            out = torch.matmul(gradient.flatten(2, -2), weight)
            return out.reshape(clients, -1, *middle, out.shape[-1])
        if weight.shape[1] == 1:
            out = gradient.reshape(-1, gradient.shape[-1]) @ weight[0, 0]
            return out.reshape(clients, clusters, *middle, -1)
        if x.shape[1] == 1:  # Σ_c δ_c W_c as one product
            out = gradient.movedim(1, -2).flatten(-2).flatten(0, -2) @ weight[0].flatten(0, 1)
            return out.reshape(clients, 1, *middle, -1)
        out = torch.bmm(_by_cluster(gradient), weight[0])
        return out.reshape(clusters, clients, *middle, -1).transpose(0, 1)

    def weight_gradients(self, gradient: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the gradient δᵀ x of the weight for all m clients and C clusters, as [m, C, outputs, inputs].

        δ is the gradient of the output, and x is the input.
        """
        del shape
        return torch.matmul(gradient.flatten(2, -2).mT, x.flatten(2, -2))

    def summed_weight_gradient(self, gradient: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return, for each cluster, the gradient of the weight summed over the clients.

        The result is [C, outputs, inputs], for C clusters.
        """
        del shape
        if gradient.shape[1] == 1:
            return (gradient.reshape(-1, gradient.shape[-1]).mT @ x.reshape(-1, x.shape[-1])).unsqueeze(0)
        return torch.bmm(_by_cluster(gradient).mT, _by_cluster(x).expand(gradient.shape[1], -1, -1))

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the bias for all m clients and C clusters, as [m, C, outputs]."""
        return gradient.flatten(2, -2).sum(2)


def _by_cluster(tensor: Tensor) -> Tensor:
    """Reshape [m, C, …, n] to [C, m · …, n], for m clients and C clusters.

    The result has one matrix for each cluster, with the samples of all clients.
    """
    return tensor.transpose(0, 1).flatten(1, -2)


def _batched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return n products x Wᵀ + bias for x [n, samples, inputs] and W [n, outputs, inputs].

    The bias is [outputs], [n, 1, outputs] or None.
    """
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias, x, weight.mT)

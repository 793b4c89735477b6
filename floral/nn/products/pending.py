"""The gradient of a weight, stored as two factors that are multiplied only when the gradient is used."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from floral.nn.products.matrix_product import MatrixProduct
from floral.nn.products.spec import WEIGHT, ProductSpec, X, split_stack, sum_axis


@dataclass(frozen=True)
class PendingGradient:
    """The gradient of one weight, stored as two factors x [m, C or 1, …] and δ [m, C, …] that are not yet multiplied.

    x is the input of the layer, and δ (`gradient`) is the gradient of the layer's output, for m clients and C clusters.
    """

    x: Tensor
    gradient: Tensor
    """δ, the gradient of the product's output."""
    spec: ProductSpec
    shape: tuple[int, ...]
    """Shape of the weight as it was passed to the product."""
    dtype: torch.dtype
    """Type of the weight, and of every gradient returned here; x and δ may be rounded to a shorter type."""
    computed: Tensor | None = None
    """The gradient [m, C, outputs, inputs, …], where it was already needed for something else."""

    @property
    def x_per_client(self) -> bool:
        """Whether each client has its own input x."""
        return self.spec.axes(X)[0]

    @property
    def clusters(self) -> int:
        """The number C of weights that were joined to one weight (see `Stacked`)."""
        return self.shape[1 if self.spec.axes(WEIGHT)[0] else 0]

    def per_client_and_cluster(self) -> Tensor:
        """Return the gradient of the weight for every client and every cluster.

        The result is [m, C, outputs, inputs, …], for m clients and C clusters. If C weights were joined to one weight
        (see `Stacked`), it is the gradient of the joined weight, [m, 1, outputs, inputs, …].
        """
        if self.computed is not None:
            return self.computed
        return self.spec.operation.weight_gradients(self.gradient, self.x, self.shape)

    def of_weight(self) -> Tensor:
        """Return the gradient in the shape of the weight.

        If all clients or all clusters share the weight, their gradients are summed.
        """
        summed = self.spec.reduced(self.per_client_and_cluster(), WEIGHT)
        return self._in_weight_shape(summed, 1 if self.spec.axes(WEIGHT)[0] else 0)

    def per_client(self) -> Tensor:
        """Return the gradient [m, …] of every client. After the client axis, it has the shape of the weight."""
        gradients = self.per_client_and_cluster()
        return self._in_weight_shape(gradients if self.spec.axes(WEIGHT)[1] else sum_axis(gradients, 1), 1)

    def sum(self, weight: Tensor | None) -> Tensor:
        """Return the weighted sum of the clients' gradients.

        A `weight` [m] gives Σ_k weight_k·g_k, where g_k is the gradient of client k. A `weight` [m, C] gives one sum
        Σ_k weight_kc·g_kc for each cluster c. If `weight` is None, the gradients are summed without weights.
        """
        x, gradient, computed = self.x, self.gradient, self.computed
        if weight is not None and weight.dim() == 2 and self.spec.stacked:
            x, gradient, computed = self._weigh_stacked(weight)
        elif weight is not None:
            factor = weight.to(self.dtype).reshape(len(weight), -1, *(1,) * (gradient.dim() - 2))
            gradient = (gradient * factor).to(gradient.dtype)
            if computed is not None:
                computed = computed * factor.reshape(*factor.shape[:2], *(1,) * (computed.dim() - 2))
        if computed is not None:
            total = computed.sum(0)
        else:
            total = self.spec.operation.summed_weight_gradient(gradient, x, self.shape)
        return self._in_weight_shape(total if self.spec.axes(WEIGHT)[1] else sum_axis(total, 0), 0)

    def divided_by(self, share: Tensor) -> PendingGradient:
        """Divide the gradient of each client by the client's entry in `share` [m], and return the result.

        Use this if the losses were multiplied by `share` before the backward pass. The result is then the gradient of
        the losses without this factor.
        """

        def divided(tensor: Tensor) -> Tensor:
            return (tensor / share.to(self.dtype).reshape(-1, *(1,) * (tensor.dim() - 1))).to(tensor.dtype)

        computed = None if self.computed is None else divided(self.computed)
        return replace(self, gradient=divided(self.gradient), computed=computed)

    def add_to(self, values: Tensor, alpha: float) -> None:
        """Add alpha times each client's gradient to the client's entry in `values` [m, …], in place.

        The shape of `values` may differ from that of the gradient by axes of length 1.
        """
        is_matrix = isinstance(self.spec.operation, MatrixProduct) and self.spec.stacked != "inputs"
        if not is_matrix or self.computed is not None or self.x.dtype != values.dtype:
            values.add_(self.per_client().reshape(values.shape), alpha=alpha)
            return
        gradient, x = self.gradient.flatten(2, -2), self.x.flatten(2, -2)
        if gradient.shape[1] > 1 and not self.spec.axes(WEIGHT)[1]:
            values.add_(self.per_client().reshape(values.shape), alpha=alpha)
            return
        x = x.expand(*gradient.shape[:2], *x.shape[2:])
        matrices = values.view(-1, gradient.shape[-1], x.shape[-1])
        matrices.baddbmm_(gradient.flatten(0, 1).mT, x.flatten(0, 1), alpha=alpha)

    def _weigh_stacked(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Multiply the gradient of client k and cluster c by the entry weight_kc of `weight` [m, C].

        This is for C weights that were joined to one weight (see `Stacked`). The gradient is stored as two factors x
        and δ. In one of them, each cluster has its own channels, and these are multiplied. The result is the new x, the
        new δ and None.
        """
        clusters = weight.shape[1]
        inputs = self.spec.stacked == "inputs"
        tensor = self.x if inputs else self.gradient
        axis = self.spec.operation.channel_axis  # the clusters share the channels
        weighed = tensor.unflatten(axis, (clusters, -1)).transpose(1, axis if axis > 0 else -2)
        shape = (len(weight), clusters, *(1,) * (weighed.dim() - 2))
        weighed = (
            (weighed * weight.to(self.dtype).reshape(shape)).to(tensor.dtype).transpose(1, axis if axis > 0 else -2)
        )
        weighed = weighed.flatten(axis, axis + 1) if axis > 0 else weighed.flatten(-2)
        return (weighed, self.gradient, None) if inputs else (self.x, weighed, None)

    def _in_weight_shape(self, gradient: Tensor, axis: int) -> Tensor:
        """Return the gradient in the shape and the data type of the weight.

        If C weights were joined to one weight (see `Stacked`), the gradient is split into C gradients along `axis`.
        """
        return split_stack(gradient.to(self.dtype), self.spec.stacked, self.clusters, axis)

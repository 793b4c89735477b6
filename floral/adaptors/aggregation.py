"""Server-side aggregation of the factors of many clients: means of products, residuals, SVDs.

Each client sends its adaptor as one vector (`flatten`). `unflatten` turns the vectors of M clients into a mixture with
axis M.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from floral.adaptors.attach import Adaptors
from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.embedding import EmbeddingAdaptor
from floral.core.spec import Params, Refused
from floral.core.streams import Shapes
from floral.nn.layers import layer_params


def flatten(adaptor: Params) -> Tensor:
    """The parameters of an adaptor as one vector [d], names sorted."""
    return torch.cat([adaptor[name].flatten() for name in sorted(adaptor)])


def unflatten(vectors: Tensor, like: Params) -> Params:
    """The inverse of `flatten` for vectors [M, d]: parameters [M, *shape] with the shapes of `like`."""
    names = sorted(like)
    parts = vectors.split([like[name].numel() for name in names], dim=1)
    return {name: part.reshape(-1, *like[name].shape) for name, part in zip(names, parts, strict=True)}


def averaging_error(adaptors: Adaptors, clients: Params, weight: Tensor, mean: Params) -> Params:
    """The error of averaging the factors of every layer: Σ_k weight_k B_k A_k - B A (arXiv 2410.09432).

    `clients` [M, ...] holds B_k and A_k, `mean` holds B and A. Biases are left out, because their mean is exact.
    """
    exact = adaptors.products(clients, weight)
    averaged = adaptors.products({name: t[None] for name, t in mean.items()}, torch.ones_like(weight[:1]))
    return {name: exact[name] - averaged[name] for name in exact if name.endswith(".weight")}


def svd_factors(adaptors: Adaptors, clients: Params, weight: Tensor, mean: Params) -> Params:
    """The best factors of the adaptor's rank for Σ_k weight_k B_k A_k = U S Vᵀ of every layer (arXiv 2402.11505).

    The factors are A = D Vᵀ and B = U S D⁻¹ with D = max(1, √S). Where the product is large they are balanced;
    otherwise the gradients of the smaller factor would be too large for the learning rate of the other. A is never near
    zero, because B learns nothing from such an A.

    Biases, norms, and the factors of a layer whose products are all zero are taken from `mean`. The sign of each pair
    of singular vectors makes the largest entry of V's vector positive; otherwise a rounding error would decide it.

    If a product has no decomposition, training has diverged. All factors are then NaN, as they would be a round later.
    """
    exact = adaptors.products(clients, weight)
    factors = dict(mean)
    for layer, adaptor in adaptors.by_layer.items():
        old = layer_params(mean, layer)
        if "A" not in old:
            continue  # This is a norm layer, whose mean is exact.
        change = exact[f"{layer}.weight"]
        change = change.mT if isinstance(adaptor, EmbeddingAdaptor) else change.flatten(1)
        try:
            u, s, v = torch.linalg.svd(change, full_matrices=False)
        except torch.linalg.LinAlgError:  # not finite, or almost  # pyright: ignore[reportPrivateImportUsage]
            return {name: torch.full_like(tensor, math.nan) for name, tensor in mean.items()}
        rank = len(old["A"])
        u, s, v = u[:, :rank], s[:rank], v[:rank]
        length = s.sqrt().clamp(min=1)
        signed = length * v.gather(1, v.abs().argmax(1, keepdim=True)).sign()[:, 0]
        nonzero = s[0] > 0
        factors[f"{layer}.A"] = torch.where(nonzero, (signed[:, None] * v).reshape(old["A"].shape), old["A"])
        up = u * s * signed / length**2
        factors[f"{layer}.B"] = torch.where(nonzero, up.reshape(old["B"].shape), old["B"])
    return factors


def require_matrix_products(adaptors: Adaptors) -> None:
    """Check that every product B A is one matrix product, so that an SVD can give new factors.

    Raises:
        Refused: the adaptor of a convolution has part of the kernel in B, or its layer is transposed or has groups.
    """
    require_no_groups(adaptors)
    for layer, adaptor in adaptors.by_layer.items():
        if isinstance(adaptor, ConvAdaptor) and adaptor.kernel_b != (1, 1):
            raise Refused(
                f"the adaptor of {layer} composes two convolutions, which an SVD cannot factorise; set convolution: in"
            )
        if isinstance(adaptor, ConvAdaptor) and adaptor.layer.window.transposed:
            raise Refused(
                f"{layer} is a transposed convolution, which this SVD cannot factorise; set convolution: none"
            )


def require_no_groups(adaptors: Adaptors) -> None:
    """Check that every product B A has the shape of its layer's weight.

    With groups, the weight holds only the diagonal blocks of the product.

    Raises:
        Refused: a convolution has groups.
    """
    for layer, adaptor in adaptors.by_layer.items():
        if isinstance(adaptor, ConvAdaptor) and adaptor.layer.groups > 1:
            raise Refused(
                f"{layer} has groups: its weight is only a part of the product B A that the server needs;"
                " set convolution: none"
            )


def restart(start: Params) -> Params:
    """The factors A of `start` with B = 0 and zero biases: an adaptor whose product is zero."""
    return {name: t if name.endswith(".A") else torch.zeros_like(t) for name, t in start.items()}


def download_floats(adaptors: Adaptors, clients: int, *, biases: bool) -> int:
    """Floats sent to a client for the change of its base.

    The server sends the factors of all clients, or the sum of their products where that is smaller.
    """
    model = adaptors.model.init(Shapes(0, "size"))
    ending = ("weight", "bias") if biases else ("weight",)
    dense = sum(t.numel() for n, t in model.items() if n.rsplit(".", 1)[0] in adaptors.by_layer and n.endswith(ending))
    return min(clients * adaptors.size, dense)


def product_norm(adaptor: Params) -> Tensor:
    """‖B A‖_F of an adaptor over all its layers, computed from the Gram matrices of its factors."""
    layers = [name.removesuffix(".A") for name in sorted(adaptor) if name.endswith(".A")]
    squares = [
        (gram(adaptor[f"{layer}.A"]) * gram(adaptor[f"{layer}.B"].movedim(1, 0))).sum().clamp(min=0) for layer in layers
    ]
    return torch.stack(squares).sum().sqrt()


def gram(factor: Tensor) -> Tensor:
    """The Gram matrix [R, R] of a factor [R, ...]."""
    return factor.flatten(1) @ factor.flatten(1).mT


def keep_components(adaptor: Params, first: Tensor | float, last: Tensor) -> Params:
    """Set all components of an adaptor to zero except first ≤ i < last; biases do not change."""

    def masked(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(".bias"):
            return tensor
        axis = 0 if name.endswith(".A") else 1
        component = torch.arange(tensor.shape[axis], device=tensor.device)
        selected = (component >= first) & (component < last)
        return tensor * selected.reshape([-1 if at == axis else 1 for at in range(tensor.dim())]).to(tensor.dtype)

    return {name: masked(name, tensor) for name, tensor in adaptor.items()}

"""Aggregate the low-rank factors A and B of many clients on the server.

Each client sends its adaptor as one vector (`flatten`). `unflatten` turns the vectors of M clients back into parameters
with a leading axis M.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from floral.adaptors.attach import Adaptors
from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.embedding import EmbeddingAdaptor
from floral.core.spec import Params, Refused, ServerView, View
from floral.core.streams import Shapes
from floral.nn.layers import layer_params


def flatten(adaptor: Params) -> Tensor:
    """Return the parameters of an adaptor as one vector [d], in the order of the sorted parameter names."""
    return torch.cat([adaptor[name].flatten() for name in sorted(adaptor)])


def unflatten(vectors: Tensor, like: Params) -> Params:
    """Return the parameters [M, *shape] of M adaptors from their vectors [M, d].

    This is the inverse of `flatten`. `like` is an adaptor that gives the names and shapes of the parameters.
    """
    names = sorted(like)
    parts = vectors.split([like[name].numel() for name in names], dim=1)
    return {name: part.reshape(-1, *like[name].shape) for name, part in zip(names, parts, strict=True)}


def averaging_error(adaptors: Adaptors, clients: Params, weight: Tensor, mean: Params) -> Params:
    """Return, for every layer, the error of averaging the factors A and B instead of their product B A.

    The error is Σ_k weight_k B_k A_k - B A. `clients` [M, ...] holds the factors B_k and A_k of client k, `weight` [M]
    the clients' weights, and `mean` the averaged factors B and A. Biases are left out, because averaging them causes no
    error.

    Source: arXiv 2410.09432.
    """
    exact = adaptors.products(clients, weight)
    averaged = adaptors.products({name: t[None] for name, t in mean.items()}, torch.ones_like(weight[:1]))
    return {name: exact[name] - averaged[name] for name in exact if name.endswith(".weight")}


def svd_factors(adaptors: Adaptors, clients: Params, weight: Tensor, mean: Params) -> Params:
    """Return, for every layer, the factors A and B whose product B A is closest to the weighted mean of the clients'
    products.

    The mean product is Σ_k weight_k B_k A_k over the clients k, without the scale of the adaptors. Let U S Vᵀ be its
    singular value decomposition, cut to the adaptor's rank. The factors are A = D Vᵀ and B = U S D⁻¹ with
    D = max(1, √S).

    If a singular value is above 1, both factors get its square root, so that one learning rate suits both. If it is
    below 1, it goes to B alone, because B learns nothing while A is near zero.

    `mean` holds the weighted means of the clients' parameters. Biases, normalisation layers, and layers whose mean
    product is zero get these values. The sign of a singular vector is arbitrary. It is chosen so that the entry of V
    with the largest absolute value is positive.

    If a mean product has no decomposition, training has diverged. All factors are then NaN, as they would be after the
    next round.

    Source: arXiv 2402.11505.
    """
    exact = adaptors.products(clients, weight)
    factors = dict(mean)
    for layer, adaptor in adaptors.by_layer.items():
        old = layer_params(mean, layer)
        if "A" not in old:
            continue  # This is a norm layer, whose mean is exact.
        change = exact[f"{layer}.weight"] / adaptor.scale
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
    """Raise Refused unless the product B A of every layer is a plain product of two matrices.

    Only then can an SVD of the product give new factors A and B.

    Raises:
        Refused: a convolution's adaptor has a factor B with a kernel larger than 1×1, or a convolution is transposed or
            has groups.
    """
    require_no_groups(adaptors)
    for layer, adaptor in adaptors.by_layer.items():
        if isinstance(adaptor, ConvAdaptor) and adaptor.kernel_b != (1, 1):
            raise Refused(
                f"the adaptor of layer {layer} consists of two convolutions, which an SVD cannot factorise; "
                "set `convolution: in`"
            )
        if isinstance(adaptor, ConvAdaptor) and adaptor.layer.window.transposed:
            raise Refused(
                f"layer {layer} is a transposed convolution, whose adaptor an SVD cannot factorise; "
                "set `convolution: none`"
            )


def require_no_groups(adaptors: Adaptors) -> None:
    """Raise Refused if a convolution with an adaptor splits its channels into groups.

    The server needs the complete product B A. With groups, the layer's weight holds only the diagonal blocks of B A.

    Raises:
        Refused: a convolution has groups.
    """
    for layer, adaptor in adaptors.by_layer.items():
        if isinstance(adaptor, ConvAdaptor) and adaptor.layer.groups > 1:
            raise Refused(
                f"convolution {layer} has groups, so its weight holds only a part of the product B A that the server "
                "needs; set `convolution: none`"
            )


def restart(start: Params) -> Params:
    """Return a new adaptor, whose factors A are those of the adaptor `start`.

    The factors B and the biases are zero, so the product B A is zero.
    """
    return {name: t if name.endswith(".A") else torch.zeros_like(t) for name, t in start.items()}


def download_floats(adaptors: Adaptors, clients: int, *, biases: bool) -> int:
    """Return the number of floats that the server sends to a client to update the client's base model.

    The server sends either the adaptors of the round's clients, or the sum of their products B A. It chooses the way
    with fewer floats. `clients` is the number of clients of the round. If `biases` is set, the sum includes the biases
    of the layers.
    """
    model = {**adaptors.model.constants, **adaptors.model.init(Shapes(0, "size"))}
    ending = ("weight", "bias") if biases else ("weight",)
    dense = sum(t.numel() for n, t in model.items() if n.rsplit(".", 1)[0] in adaptors.by_layer and n.endswith(ending))
    return min(clients * adaptors.size, dense)


def added_by_server(served: ServerView, change: Params) -> View:
    """Return the groups "base" and, if there is one, "weights" after the server has added `change` to parameters.

    The names in `change` are those of parameters in these groups (see `Adaptors.frozen_weights`).
    """
    groups = {
        name: dict(served.after.get(name, served.before[name])) for name in ("base", "weights") if name in served.before
    }
    group_of = {name: group for group in groups.values() for name in group}
    for name, value in change.items():
        group_of[name][name] = group_of[name][name] + value
    return groups


def product_norm(adaptor: Params) -> Tensor:
    """Return one Frobenius norm of an adaptor: that of the products B A of all its layers together.

    The norm is computed from the Gram matrices of A and B.
    """
    layers = [name.removesuffix(".A") for name in sorted(adaptor) if name.endswith(".A")]
    squares = [
        (gram(adaptor[f"{layer}.A"]) * gram(adaptor[f"{layer}.B"].movedim(1, 0))).sum().clamp(min=0) for layer in layers
    ]
    return torch.stack(squares).sum().sqrt()


def gram(factor: Tensor) -> Tensor:
    """Return the Gram matrix [R, R] of a factor [R, ...]: the inner products of its R rows."""
    return factor.flatten(1) @ factor.flatten(1).mT


def keep_components(adaptor: Params, first: Tensor | float, last: Tensor) -> Params:
    """Set every component i of an adaptor to zero, except those with first ≤ i < last.

    Component i is the i-th row of A and the i-th column of B. Biases do not change.
    """

    def masked(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(".bias"):
            return tensor
        axis = 0 if name.endswith(".A") else 1
        component = torch.arange(tensor.shape[axis], device=tensor.device)
        selected = (component >= first) & (component < last)
        return tensor * selected.reshape([-1 if at == axis else 1 for at in range(tensor.dim())]).to(tensor.dtype)

    return {name: masked(name, tensor) for name, tensor in adaptor.items()}

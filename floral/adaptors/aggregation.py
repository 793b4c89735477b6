"""What a server does with the factors of many clients beyond averaging each: means of products, residuals, SVDs.

Its clients send their factors one by one, `flat`; `unflat` gives them back as a mixture whose axis is the clients.
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


def flat(adaptor: Params) -> Tensor:
    """All numbers of an adaptor [d], in the order of its names."""
    return torch.cat([adaptor[name].flatten() for name in sorted(adaptor)])


def unflat(vectors: Tensor, like: Params) -> Params:
    """The inverse of `flat` for vectors [M, d]: parameters [M, *shape] of the shapes in `like`."""
    names = sorted(like)
    parts = vectors.split([like[name].numel() for name in names], dim=1)
    return {name: part.reshape(-1, *like[name].shape) for name, part in zip(names, parts, strict=True)}


def residual(adaptors: Adaptors, clients: Params, weight: Tensor, mean: Params) -> Params:
    """Σ_k weight_k B_k A_k - B A of the weights of every layer, `clients` [M, ...] and their `mean` B, A.

    This is what averaging the factors misses (arXiv 2410.09432); biases, whose mean misses nothing, are not in it.
    """
    exact = adaptors.products(clients, weight)
    served = adaptors.products({name: t[None] for name, t in mean.items()}, torch.ones_like(weight[:1]))
    return {name: exact[name] - served[name] for name in exact if name.endswith(".weight")}


def decomposed(adaptors: Adaptors, clients: Params, weight: Tensor, mean: Params) -> Params:
    """The best factors of their rank for Σ_k weight_k B_k A_k = U S Vᵀ of every layer (arXiv 2402.11505).

    A = D Vᵀ and B = U S D⁻¹ with D = max(1, √S): balanced where the product is large, for else the gradients of the
    smaller factor are too large for the rate of the other, and never with an A near zero, from where B learns nothing.
    Biases, norms, and the factors of a layer whose products are all zero, are those of `mean`. Of each pair of singular
    vectors the largest entry of V's is positive, for else a rounding error decides their sign. Where a product has no
    decomposition, training has diverged, and all factors are NaN, as they would be a round later.
    """
    exact = adaptors.products(clients, weight)
    found = dict(mean)
    for layer, adaptor in adaptors.by_layer.items():
        old = layer_params(mean, layer)
        if "A" not in old:
            continue  # of a norm, whose mean misses nothing
        change = exact[f"{layer}.weight"]
        change = change.mT if isinstance(adaptor, EmbeddingAdaptor) else change.flatten(1)
        try:
            left, size, right = torch.linalg.svd(change, full_matrices=False)
        except torch.linalg.LinAlgError:  # not finite or nearly so  # pyright: ignore[reportPrivateImportUsage]
            return {name: torch.full_like(tensor, math.nan) for name, tensor in mean.items()}
        rank = len(old["A"])
        left, size, right = left[:, :rank], size[:rank], right[:rank]
        length = size.sqrt().clamp(min=1)
        signed = length * right.gather(1, right.abs().argmax(1, keepdim=True)).sign()[:, 0]
        some = size[0] > 0
        found[f"{layer}.A"] = torch.where(some, (signed[:, None] * right).reshape(old["A"].shape), old["A"])
        up = left * size * signed / length**2
        found[f"{layer}.B"] = torch.where(some, up.reshape(old["B"].shape), old["B"])
    return found


def as_matrices(adaptors: Adaptors) -> None:
    """Make sure that every product B A is one matrix product, which an SVD can take apart again.

    Raises:
        Refused: the adaptor of a convolution has a part of the kernel in B, or is transposed, or has groups.
    """
    ungrouped(adaptors)
    for layer, adaptor in adaptors.by_layer.items():
        if isinstance(adaptor, ConvAdaptor) and adaptor.kernel_b != (1, 1):
            raise Refused(
                f"the adaptor of {layer} composes two convolutions, a product that an SVD cannot take apart;"
                " set convolution: in"
            )
        if isinstance(adaptor, ConvAdaptor) and adaptor.layer.window.transposed:
            raise Refused(f"{layer} is a transposed convolution, whose product an SVD takes apart the other way round")


def ungrouped(adaptors: Adaptors) -> None:
    """Make sure that every product B A is a change of its layer's weight, and not only its blocks on the diagonal.

    Raises:
        Refused: a convolution has groups.
    """
    for layer, adaptor in adaptors.by_layer.items():
        if isinstance(adaptor, ConvAdaptor) and adaptor.layer.groups > 1:
            raise Refused(f"{layer} has groups: its weight is only a part of the product B A that the server looks at")


def restarted(start: Params) -> Params:
    """An adaptor that is zero, with the factors A of `start`."""
    return {name: t if name.endswith(".A") else torch.zeros_like(t) for name, t in start.items()}


def down(adaptors: Adaptors, clients: int, *, biases: bool) -> int:
    """Floats that tell a client what is added to its base: the clients' factors, or the sum of their products where
    that is smaller."""
    whole = adaptors.model.init(Shapes(0, "size"))
    ending = ("weight", "bias") if biases else ("weight",)
    dense = sum(t.numel() for n, t in whole.items() if n.rsplit(".", 1)[0] in adaptors.by_layer and n.endswith(ending))
    return min(clients * adaptors.size, dense)


def sizes(adaptor: Params) -> Tensor:
    """‖B A‖_F of an adaptor, over all its layers: the factors' axes are disjoint, so two Gram matrices are enough."""
    layers = [name.removesuffix(".A") for name in sorted(adaptor) if name.endswith(".A")]
    squares = [
        (gram(adaptor[f"{layer}.A"]) * gram(adaptor[f"{layer}.B"].movedim(1, 0))).sum().clamp(min=0) for layer in layers
    ]
    return torch.stack(squares).sum().sqrt()


def gram(factor: Tensor) -> Tensor:
    """Inner products [R, R] of the components of a factor [R, ...]."""
    return factor.flatten(1) @ factor.flatten(1).mT


def kept(adaptor: Params, first: Tensor | float, last: Tensor) -> Params:
    """The adaptor with its components first ≤ i < last alone, the others zero; biases are as they are."""

    def masked(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(".bias"):
            return tensor
        axis = 0 if name.endswith(".A") else 1
        component = torch.arange(tensor.shape[axis], device=tensor.device)
        chosen = (component >= first) & (component < last)
        return tensor * chosen.reshape([-1 if at == axis else 1 for at in range(tensor.dim())]).to(tensor.dtype)

    return {name: masked(name, tensor) for name, tensor in adaptor.items()}

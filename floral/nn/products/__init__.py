"""The products of a layer's inputs with its weights: matrix products and convolutions.

Outside a `Tape`, these are PyTorch's own operations. Inside a `Tape`, the backward pass computes only the gradients of
the activations. For every weight, it records two factors: the input x of the layer and the gradient δ of its output.
The gradient of the weight is the product of the two. The engine multiplies the factors later, when it knows what to do
with the gradient. It either adds the gradient to the weights of each client in place, or sums the gradients over the
clients. So no gradient tensor of the size of the weights is created for each client.

Modules, in reading order:

- `matrix_product`, `convolution`: the two operations, with their gradients.
- `spec`: the description of a product: its operation, and the axes over which it is vectorised.
- `pending`: one recorded pair of factors x and δ.
- `tape`: the tape on which pairs are recorded, and the type to which products are rounded.
- `autograd`: the operation whose backward pass records pairs on the tape.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from floral.nn.products import tape
from floral.nn.products.autograd import Product
from floral.nn.products.convolution import Convolution, Pair, Window
from floral.nn.products.matrix_product import MatrixProduct
from floral.nn.products.pending import PendingGradient
from floral.nn.products.spec import ProductSpec, Stacked, join_stack
from floral.nn.products.tape import Leaf, Tape, rounded

__all__ = ["Leaf", "Pair", "PendingGradient", "Tape", "Window", "conv2d", "linear", "rounded"]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, delta: Tensor | None = None, stacked: Stacked = ""
) -> Tensor:
    """Return x (W + delta)ᵀ + bias for ONE client: the product of a linear layer with input x and weight W.

    The shapes are x [..., inputs] and W [outputs, inputs]; `delta` is a change of W. With `stacked`, W consists of C
    weights that are used as one, as described at `Stacked`.
    """
    active, spec = tape.active(), ProductSpec(MatrixProduct(), stacked=stacked, dtype=tape.rounding())
    if x.dim() == 1:
        return linear(x[None], weight, bias, delta=delta, stacked=stacked)[0]
    if active is None:
        weight = join_stack(weight, stacked) if delta is None else weight + delta
        return F.linear(spec.rounded(x), spec.rounded(weight), spec.rounded(bias)).to(x.dtype)
    return Product.apply(x, weight, bias, delta, spec, active)  # type: ignore[no-any-return]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    window: Window,
    delta: Tensor | None = None,
    stacked: Stacked = "",
) -> Tensor:
    """Return the convolution of x [B, inputs, H, W] with the kernel W + delta for ONE client.

    `window` has the stride, padding and so on; `delta` is a change of the weight W. With `stacked`, W consists of C
    weights that are used as one, as described at `Stacked`. The window must then have groups = 1.
    """
    active, spec = tape.active(), ProductSpec(Convolution(window), stacked=stacked, dtype=tape.rounding())
    if active is None:
        weight = join_stack(weight, stacked) if delta is None else weight + delta
        return window(spec.rounded(x), spec.rounded(weight), spec.rounded(bias)).to(x.dtype)
    return Product.apply(x, weight, bias, delta, spec, active)  # type: ignore[no-any-return]

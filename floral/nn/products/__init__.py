"""Matrix products and convolutions that save memory in the backward pass.

With many clients, PyTorch would create one gradient of the size of the weights for each client. Inside a `Tape`, the
backward pass instead stores two factors for every weight: the input x of the layer and the gradient δ of its output.
The gradient of the weight is the product of the two. It is computed later, when it is added to the weights of each
client, or summed over the clients. Outside a `Tape`, these are PyTorch's own operations.

Modules, in reading order:

- `matrix_product`, `convolution`: the two operations, with their gradients.
- `spec`: which operation is computed, and whether it has axes for clients and clusters.
- `pending`: the gradient of one weight, stored as the two factors x and δ.
- `tape`: the list of these gradients, and the data type to which products are rounded.
- `autograd`: the operation whose backward pass stores the two factors.
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

    The shapes are x [..., inputs] and W [outputs, inputs]; `delta` is a change of W. If `stacked` is set, W holds C
    weights, which are first joined to one weight along the outputs or the inputs (see `Stacked`).
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

    `window` has the stride, padding and so on; `delta` is a change of the weight W. If `stacked` is set, W holds C
    weights, which are first joined to one weight along the outputs or the inputs (see `Stacked`). This needs a
    convolution without groups.
    """
    active, spec = tape.active(), ProductSpec(Convolution(window), stacked=stacked, dtype=tape.rounding())
    if active is None:
        weight = join_stack(weight, stacked) if delta is None else weight + delta
        return window(spec.rounded(x), spec.rounded(weight), spec.rounded(bias)).to(x.dtype)
    return Product.apply(x, weight, bias, delta, spec, active)  # type: ignore[no-any-return]

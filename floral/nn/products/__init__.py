"""Products of a layer's inputs with its weights, linear or convolutional.

Outside a `Tape` these are PyTorch's own operations. Inside a `Tape` the backward pass computes only the gradients of
the activations. For every weight it records the pair (x, δ) whose product is the weight's gradient. The engine takes
this product last, when it knows what the gradient is for: added in place to each client's weights, or summed over
clients with the weights of the average. So no gradient tensor of a client's size is ever created.

Modules, in reading order:

- `matrix_product`, `convolution`: one operation each, with its gradients.
- `spec`: which operation, and over which axes it is vectorised.
- `pending`: one recorded pair (x, δ).
- `tape`: where pairs are recorded, and to which type products are rounded.
- `autograd`: the operation whose backward pass writes to the tape.
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
    """x (W + delta)ᵀ + bias of ONE client.

    Shapes: x [..., inputs], W [outputs, inputs]; with `stacked`, C weights that are used as one (see `Stacked`).
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
    """Convolution of x [B, inputs, H, W] with W + delta of ONE client, over `window`.

    With `stacked`, C weights are used as one (see `Stacked`); this needs a window without groups.
    """
    active, spec = tape.active(), ProductSpec(Convolution(window), stacked=stacked, dtype=tape.rounding())
    if active is None:
        weight = join_stack(weight, stacked) if delta is None else weight + delta
        return window(spec.rounded(x), spec.rounded(weight), spec.rounded(bias)).to(x.dtype)
    return Product.apply(x, weight, bias, delta, spec, active)  # type: ignore[no-any-return]

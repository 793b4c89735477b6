"""The autograd operation for a matrix product or a convolution, whose backward pass stores factors of the weight's
gradient.

The factors are multiplied later, when the gradient is used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.nn.products.convolution import Convolution, channels_last
from floral.nn.products.pending import PendingGradient
from floral.nn.products.spec import BIAS, DELTA, ProductSpec, X
from floral.nn.products.tape import Tape


class Product(torch.autograd.Function):
    """One matrix product x (W + delta)ᵀ + bias, or one convolution of x with W + delta.

    The backward pass adds the gradient of the weight W to the list of gradients `tape`. The gradient is stored as two
    factors, which are multiplied later. `torch.vmap` vectorises the product over clients and clusters.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor | None, spec: ProductSpec, tape: Tape
    ) -> Tensor:
        operation = spec.operation
        inputs, used = spec.rounded(spec.vectorised(x, X)), spec.rounded(spec.effective_weight(weight, delta))
        biases = None if bias is None else spec.vectorised(bias, BIAS)
        if biases is None:
            out = operation.forward(inputs, used, None)
        elif _same_for_all(biases):  # The operation adds this bias itself.
            out = operation.forward(inputs, used, spec.rounded(biases[0, 0]))
        elif operation.takes_client_bias(used):
            out = operation.forward(inputs, used, spec.rounded(biases))
        else:
            out = operation.forward(inputs, used, None)
            operation.add_bias(out, biases)
        return spec.result(out).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.spec, ctx.tape = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, bias, delta = ctx.saved_tensors
        spec: ProductSpec = ctx.spec
        exact = spec.vectorised_result(gradients[0])
        gradient, inputs = spec.rounded(exact), spec.rounded(spec.vectorised(x, X))
        if isinstance(spec.operation, Convolution) and delta is None and gradient.shape[:2] == (1, 1):
            return _backward_of_one_convolution(ctx, spec.operation, gradient)
        to_x = to_weight = to_bias = to_delta = None
        if ctx.needs_input_grad[0]:
            used = spec.rounded(spec.effective_weight(weight, delta))
            to_x = spec.reduced(spec.operation.input_gradient(gradient, inputs, used).to(x.dtype), X)
        pending = PendingGradient(inputs, gradient, spec, tuple(weight.shape), weight.dtype)
        if delta is not None and ctx.needs_input_grad[3]:
            computed = pending.per_client_and_cluster().to(weight.dtype)
            pending = replace(pending, computed=computed)
            to_delta = spec.reduced(computed, DELTA)
        if ctx.needs_input_grad[1]:
            to_weight = _record(ctx.tape, weight, pending)
        if bias is not None and ctx.needs_input_grad[2]:
            to_bias = spec.reduced(spec.operation.bias_gradient(exact), BIAS)
        return to_x, to_weight, to_bias, to_delta, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, spec, tape = inputs
        dims = in_dims[:4]
        moved = [tensor if dim is None else tensor.movedim(dim, 0) for tensor, dim in zip(tensors, dims, strict=True)]
        spec = replace(spec, levels=(*spec.levels, tuple(dim is not None for dim in dims)))
        if len(spec.levels) > 2 or (spec.stacked and len(spec.levels) > 1):
            raise Refused(
                "a layer is vectorised over more axes than clients and clusters; use fewer nested calls of `torch.vmap`"
            )
        return Product.apply(*moved, spec, tape), 0  # type: ignore[return-value]


def _backward_of_one_convolution(ctx: Any, convolution: Convolution, gradient: Tensor) -> tuple[Any, ...]:
    """Compute the backward pass of ONE client's convolution.

    One PyTorch call gives the gradients of x, weight and bias together.
    """
    x, weight, bias, _ = ctx.saved_tensors
    spec: ProductSpec = ctx.spec
    inputs = spec.rounded(spec.vectorised(x, X))
    kernel = channels_last(spec.rounded(spec.effective_weight(weight, None)[0, 0]))
    to_x, to_kernel, to_bias = (
        None if result is None else result.to(weight.dtype)[None, None]
        for result in convolution.window.backward(gradient[0, 0], inputs[0, 0], kernel, tuple(ctx.needs_input_grad[:3]))
    )
    to_weight = None
    if to_kernel is not None:
        pending = PendingGradient(inputs, gradient, spec, tuple(weight.shape), weight.dtype, to_kernel)
        to_weight = _record(ctx.tape, weight, pending)
    to_x = None if to_x is None else spec.reduced(to_x, X)
    to_bias = None if bias is None or to_bias is None else spec.reduced(to_bias, BIAS)
    return to_x, to_weight, to_bias, None, None, None


def _record(tape: Tape, weight: Tensor, pending: PendingGradient) -> Tensor | None:
    """Store the gradient in the list `tape` if the weight is a trained parameter. Otherwise, return it to autograd."""
    leaf = tape.leaf(weight)
    if leaf is None:
        return pending.of_weight()
    tape.record(leaf, pending)
    return None


def _same_for_all(bias: Tensor) -> bool:
    """Return whether all clients and clusters have the same bias.

    The bias is [m or 1, C or 1, outputs], for m clients and C clusters. All have the same bias if each of the first two
    axes has length 1 or stride 0.
    """
    return all(size == 1 or step == 0 for size, step in zip(bias.shape[:2], bias.stride()[:2], strict=True))

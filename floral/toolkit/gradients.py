"""Gradients of a function of parameters, as `torch.func.grad` computes them, but without PyTorch's compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def gradient(loss: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return the function that computes the gradient of `loss` for its first argument.

    The first argument is a dictionary of parameters, or of groups of them, and the gradient has the same form. It is 0
    for parameters that the loss does not depend on. All operations are those of `torch.func.grad`.
    """
    with_aux = gradient_and_loss(lambda params, *rest: (loss(params, *rest), {}))
    return lambda params, *rest: with_aux(params, *rest)[0]


def gradient_and_loss(loss: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Any, Tensor, Any]]:
    """Return a function that computes (gradient, loss, changed) for a `loss` that returns (loss, changed).

    `changed` are further results, such as new running statistics. The gradient is as in `gradient`.

    `torch.func.grad` imports PyTorch's compiler when it calls autograd, which takes 2 s. It does not call autograd if
    the function's result is detached. Therefore the function calls autograd itself, and returns the gradient beside
    its result.
    """

    def detached(params: Any, *rest: Any) -> tuple[Tensor, tuple[Any, Tensor, Any]]:
        value, changed = loss(params, *rest)
        flat = list(_tensors(params))
        if flat and value.requires_grad:
            slopes = torch.autograd.grad(value, flat, create_graph=True, materialize_grads=True)
        else:
            slopes = [torch.zeros_like(tensor) for tensor in flat]
        return value.detach(), (_like(params, iter(slopes)), value.detach(), changed)

    return lambda params, *rest: torch.func.grad(detached, has_aux=True)(params, *rest)[1]


def _tensors(params: Mapping[str, Any] | Tensor) -> Iterator[Tensor]:
    if isinstance(params, Tensor):
        yield params
    else:
        for part in params.values():
            yield from _tensors(part)


def _like(params: Mapping[str, Any] | Tensor, tensors: Iterator[Tensor]) -> Any:
    """Return the next tensors in the form of `params`."""
    if isinstance(params, Tensor):
        return next(tensors)
    return {name: _like(part, tensors) for name, part in params.items()}

"""Products of a layer's inputs with its weights: plain ones, or ones whose weight gradients are left on a tape.

Under a `Tape` the backward pass computes the gradients of the activations only. For every weight it notes the pair
(x, δ) whose product is the gradient, and the engine takes that product last, where it knows what the gradient is for:
added to the weights of each client in place, or summed over clients with their weights in the average. No gradient
tensor of a client's size is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Refused

Stacked = Literal["", "outputs", "inputs"]
"""How C weights are used as one: [C, R, inputs, …] as [C·R, inputs, …], or [C, outputs, R, …] as [outputs, C·R, …]."""

Leaf = tuple[str, str]
"""(group, name) of a trained parameter."""

NOTHING = (False, True, False)
"""Of the gradients of a convolution's (input, weight, bias), the weight's alone."""


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, delta: Tensor | None = None, stacked: Stacked = ""
) -> Tensor:
    """x (W + delta)ᵀ + bias of ONE client: x [..., inputs], W [outputs, inputs], or C weights that are used as one."""
    tape, how = _TAPE.get(), How(stacked=stacked, dtype=_ROUNDED.get())
    if x.dim() == 1:
        return linear(x[None], weight, bias, delta=delta, stacked=stacked)[0]
    if tape is None:
        weight = _whole(weight, stacked) if delta is None else weight + delta
        return F.linear(how.rounded(x), how.rounded(weight), how.rounded(bias)).to(x.dtype)
    return _Product.apply(x, weight, bias, delta, how, tape)  # type: ignore[no-any-return]


Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a kernel goes over an image [B, inputs, H, W]: W [outputs, inputs / groups, h, w], or of a `transposed`
    convolution, which gives the gradient of one for its input, W [inputs, outputs / groups, h, w]."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    transposed: bool = False
    output_padding: Pair = (0, 0)
    """Of a transposed convolution: rows and columns at the end of its result that a stride leaves open."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.transposed:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return F.conv_transpose2d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Any:
        """Gradients of (x, weight, bias) where wanted."""
        where = self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        return torch.ops.aten.convolution_backward.default(gradient, x, weight, [gradient.shape[1]], *where, wanted)

    def channels(self, inputs: int, outputs: int) -> tuple[int, int]:
        """The first two axes of a weight."""
        return (inputs, outputs // self.groups) if self.transposed else (outputs, inputs // self.groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    window: Window,
    delta: Tensor | None = None,
    stacked: Stacked = "",
) -> Tensor:
    """x [B, inputs, H, W] of ONE client under W + delta, as `window` says; C weights as one without groups alone."""
    tape, how = _TAPE.get(), How(stacked=stacked, window=window, dtype=_ROUNDED.get())
    if tape is None:
        weight = _whole(weight, stacked) if delta is None else weight + delta
        return window(how.rounded(x), how.rounded(weight), how.rounded(bias)).to(x.dtype)
    return _Product.apply(x, weight, bias, delta, how, tape)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ the tape


@dataclass(frozen=True)
class Tape:
    """The trained parameters whose gradients are noted, and what was noted of each."""

    leaves: dict[int, tuple[Leaf, Tensor]]
    """Address → name and value, with or without a client axis in front."""
    entries: dict[Leaf, list[Entry]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, dict[str, Tensor]]) -> Tape:
        """A tape for all of these parameters."""
        named = [((group, name), tensor) for group, params in values.items() for name, tensor in params.items()]
        return cls({tensor.data_ptr(): (leaf, tensor) for leaf, tensor in named})

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Every product inside is noted here."""
        token = _TAPE.set(self)
        try:
            yield
        finally:
            _TAPE.reset(token)

    def leaf(self, weight: Tensor) -> Leaf | None:
        """The parameter that a weight is, but for axes of length 1; None where it was computed from parameters."""
        found = self.leaves.get(weight.data_ptr())
        return found[0] if found is not None and _layout(found[1]) == _layout(weight) else None


_TAPE: ContextVar[Tape | None] = ContextVar("tape", default=None)
_ROUNDED: ContextVar[torch.dtype | None] = ContextVar("rounded", default=None)


@contextmanager
def rounded(dtype: torch.dtype | None) -> Iterator[None]:
    """Products inside, and their gradients, have their factors and results rounded to a shorter type; None: to none.

    Parameters, inputs, outputs and gradients keep the types that they have.
    """
    token = _ROUNDED.set(dtype)
    try:
        yield
    finally:
        _ROUNDED.reset(token)


def _layout(tensor: Tensor) -> list[tuple[int, int]]:
    return [(size, step) for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


# ------------------------------------------------------------------------------------- one product, lifted


@dataclass(frozen=True)
class How:
    """What kind of product, and over which axes it was lifted."""

    stacked: Stacked = ""
    window: Window | None = None
    """None: no convolution."""
    levels: tuple[tuple[bool, ...], ...] = ()
    """Of each vmap from the innermost outwards, which of (x, weight, bias, delta) carry its axis. The outermost is over
    clients, one inside it over clusters."""
    dtype: torch.dtype | None = None
    """What factors and results are rounded to; None: as they are."""

    def rounded(self, tensor: Any) -> Any:
        """A factor, or None, as the product takes it."""
        return tensor if tensor is None or self.dtype is None else tensor.to(self.dtype)

    @property
    def convolves(self) -> bool:
        return self.window is not None

    def has(self, which: int) -> tuple[bool, bool]:
        """Whether an input carries the axis of clients, and that of clusters."""
        inwards = [level[which] for level in reversed(self.levels)]
        return (*inwards, False, False)[:2]  # type: ignore[return-value]

    def vectorised(self, tensor: Tensor, which: int) -> Tensor:
        """An input as [m or 1, C or 1, …]."""
        clients, clusters = self.has(which)
        tensor = tensor if clients else tensor.unsqueeze(0)
        return tensor if clusters else tensor.unsqueeze(1)

    def reduced(self, gradient: Tensor, which: int) -> Tensor:
        """The gradient [m, C, …] of an input, in the input's own axes."""
        clients, clusters = self.has(which)
        gradient = gradient if clusters else _sum(gradient, 1)
        return gradient if clients else _sum(gradient, 0)

    def result(self, vectorised: Tensor) -> Tensor:
        """[m, C, …] without the axes that nothing was lifted over."""
        vectorised = vectorised if len(self.levels) > 1 else vectorised[:, 0]
        return vectorised if self.levels else vectorised[0]

    def of_result(self, gradient: Tensor) -> Tensor:
        """The inverse of `result`."""
        gradient = gradient if self.levels else gradient.unsqueeze(0)
        return gradient if len(self.levels) > 1 else gradient.unsqueeze(1)


class _Product(torch.autograd.Function):
    """One product whose backward pass leaves the weight's gradient on the tape."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor | None, how: How, tape: Tape) -> Tensor:
        vectorised, used = how.rounded(how.vectorised(x, 0)), how.rounded(_effective(weight, delta, how))
        product = _convolve if how.convolves else _multiply
        added = None if bias is None else how.vectorised(bias, 2)
        if added is None:
            out = product(vectorised, used, None, how)
        elif _same_for_all(added):  # the product itself can add it
            out = product(vectorised, used, how.rounded(added[0, 0]), how)
        elif not how.convolves and len(used) > 1:
            out = product(vectorised, used, how.rounded(added), how)
        else:
            out = product(vectorised, used, None, how)
            out.add_(added[:, :, None, :, None, None] if how.convolves else _before_last(added, out.dim()))
        return how.result(out).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.how, ctx.tape = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, bias, delta = ctx.saved_tensors
        how: How = ctx.how
        exact = how.of_result(gradients[0])
        gradient, vectorised = how.rounded(exact), how.rounded(how.vectorised(x, 0))
        if how.convolves and delta is None and gradient.shape[:2] == (1, 1):
            return _convolved_back_at_once(ctx, gradient)
        to_x = to_weight = to_bias = to_delta = None
        if ctx.needs_input_grad[0]:
            back = _convolve_back if how.convolves else _multiply_back
            to_x = back(gradient, vectorised, how.rounded(_effective(weight, delta, how)), how)
            to_x = how.reduced(to_x.to(x.dtype), 0)
        entry = Entry(vectorised, gradient, how, tuple(weight.shape), weight.dtype)
        if delta is not None and ctx.needs_input_grad[3]:
            each = entry.of_clients().to(weight.dtype)
            entry = replace(entry, known=each)
            to_delta = how.reduced(each, 3)
        if ctx.needs_input_grad[1]:
            leaf = ctx.tape.leaf(weight)
            if leaf is None:
                to_weight = entry.of_weight()
            else:
                ctx.tape.entries.setdefault(leaf, []).append(entry)
        if bias is not None and ctx.needs_input_grad[2]:
            summed = exact.sum((2, 4, 5)) if how.convolves else exact.flatten(2, -2).sum(2)
            to_bias = how.reduced(summed, 2)
        return to_x, to_weight, to_bias, to_delta, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        *tensors, how, tape = inputs
        dims = in_dims[:4]
        moved = [tensor if dim is None else tensor.movedim(dim, 0) for tensor, dim in zip(tensors, dims, strict=True)]
        how = replace(how, levels=(*how.levels, tuple(dim is not None for dim in dims)))
        if len(how.levels) > 2 or (how.stacked and len(how.levels) > 1):
            raise Refused("its layers are lifted over more than clients and clusters")
        return _Product.apply(*moved, how, tape), 0  # type: ignore[return-value]


def _sum(tensor: Tensor, axis: int) -> Tensor:
    """The sum over an axis, which is a view where its length is 1."""
    return tensor.select(axis, 0) if tensor.shape[axis] == 1 else tensor.sum(axis)


def _whole(weight: Tensor, stacked: Stacked, axis: int = 0) -> Tensor:
    """C weights as one, whose axis C is `axis`."""
    match stacked:
        case "outputs":
            return weight.flatten(axis, axis + 1)
        case "inputs":
            return weight.movedim(axis, axis + 1).flatten(axis + 1, axis + 2)
        case _:
            return weight


def _effective(weight: Tensor, delta: Tensor | None, how: How) -> Tensor:
    """W + delta [m or 1, C or 1, outputs, inputs, …]."""
    used = _whole(how.vectorised(weight, 1), how.stacked, 2)
    return used if delta is None else used + how.vectorised(delta, 3)


def _same_for_all(bias: Tensor) -> bool:
    """Whether a bias [m or 1, C or 1, outputs] is one, perhaps expanded."""
    return all(size == 1 or step == 0 for size, step in zip(bias.shape[:2], bias.stride()[:2], strict=True))


def _before_last(bias: Tensor, dims: int) -> Tensor:
    """[m, C, outputs] as [m, C, 1, …, outputs]."""
    return bias.reshape(*bias.shape[:2], *(1,) * (dims - 3), bias.shape[2])


def _by_cluster(tensor: Tensor) -> Tensor:
    """[m, C, …, n] as [C, m · …, n]: all clients' rows of one cluster in one matrix."""
    return tensor.transpose(0, 1).flatten(1, -2)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
    """x [m, C or 1, …, inputs] · W [m or 1, C or 1, outputs, inputs]ᵀ + bias as [m, C, …, outputs].

    The bias is [outputs], or where every client has its own weights also [m, C or 1, outputs].
    """
    middle = x.shape[2:-1]
    clients, clusters = max(len(x), len(weight)), max(x.shape[1], weight.shape[1])
    if len(weight) > 1 or clients == 1:
        rows, matrices = (t.expand(clients, clusters, *t.shape[2:]).flatten(0, 1) for t in (x.flatten(2, -2), weight))
        if bias is not None and bias.dim() > 1:
            bias = bias.expand(clients, clusters, -1).flatten(0, 1)[:, None]
        return _batched(rows, matrices, bias).reshape(clients, clusters, *middle, -1)
    if weight.shape[1] == 1:
        out = F.linear(x.reshape(-1, x.shape[-1]), weight[0, 0], bias)
        return out.reshape(clients, clusters, *middle, -1)
    out = _batched(_by_cluster(x).expand(clusters, -1, -1), weight[0], bias)
    return out.reshape(clusters, clients, *middle, -1).transpose(0, 1)


def _batched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [n, rows, inputs] · W [n, outputs, inputs]ᵀ + bias [outputs] or [n, 1, outputs]."""
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias, x, weight.mT)


def _multiply_back(gradient: Tensor, x: Tensor, weight: Tensor, how: How) -> Tensor:
    """δ [m, C, …, outputs] · W as [m, C, …, inputs]; summed over C already where x has no such axis."""
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


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
    """x [m, C or 1, B, inputs, H, W] with W [m or 1, C or 1, outputs, inputs, h, w]: one call per different weight."""
    window = how.window
    assert window is not None
    if weight.shape[:2] == (1, 1):
        out = window(x.flatten(0, 2), _channels_last(weight[0, 0]), bias)
        return out.unflatten(0, x.shape[:3])
    clients, clusters = max(len(x), len(weight)), max(x.shape[1], weight.shape[1])
    if len(weight) == 1:
        each = [window(_at(x, 1, c).flatten(0, 1), _channels_last(weight[0, c]), bias) for c in range(clusters)]
        return torch.stack([out.unflatten(0, (clients, -1)) for out in each], 1)
    each = [
        window(_at(x[k], 0, c), _channels_last(_at(weight[k], 0, c)), bias)
        for k in range(clients)
        for c in range(clusters)
    ]
    return torch.stack(each).unflatten(0, (clients, clusters))


def _convolve_back(gradient: Tensor, x: Tensor, weight: Tensor, how: How) -> Tensor:
    """δ's gradient for x, [m, C, B, inputs, H, W]."""

    def back(some: Tensor, into: Tensor, kernel: Tensor) -> Tensor:
        return _convolution_backward(some, into, _channels_last(kernel), how, (True, False, False))[0]

    clients, clusters = gradient.shape[:2]
    if weight.shape[:2] == (1, 1):
        into = x.expand(clients, clusters, *x.shape[2:]).flatten(0, 2)
        return back(gradient.flatten(0, 2), into, weight[0, 0]).unflatten(0, gradient.shape[:3])
    if len(weight) == 1:
        each = [
            back(gradient[:, c].flatten(0, 1), _at(x, 1, c).flatten(0, 1), weight[0, c]).unflatten(0, (clients, -1))
            for c in range(clusters)
        ]
        return torch.stack(each, 1)
    each = [
        back(gradient[k, c], _at(x[k], 0, c), _at(weight[k], 0, c)) for k in range(clients) for c in range(clusters)
    ]
    return torch.stack(each).unflatten(0, (clients, clusters))


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, how: How, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, ...]:
    """Gradients of (x, weight, bias) where wanted."""
    assert how.window is not None
    return how.window.backward(gradient, x, weight, wanted)


def _convolved_back_at_once(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """The backward pass of ONE client's convolution: one call has all gradients, so none is left for later."""
    x, weight, bias, _ = ctx.saved_tensors
    how: How = ctx.how
    vectorised = how.rounded(how.vectorised(x, 0))
    kernel = _channels_last(how.rounded(_effective(weight, None, how)[0, 0]))
    to_x, to_kernel, to_bias = (
        None if found is None else found.to(weight.dtype)[None, None]
        for found in _convolution_backward(
            gradient[0, 0], vectorised[0, 0], kernel, how, tuple(ctx.needs_input_grad[:3])
        )
    )
    to_weight = None
    if to_kernel is not None:
        entry = Entry(vectorised, gradient, how, tuple(weight.shape), weight.dtype, to_kernel)
        leaf = ctx.tape.leaf(weight)
        if leaf is None:
            to_weight = entry.of_weight()
        else:
            ctx.tape.entries.setdefault(leaf, []).append(entry)
    to_x = None if to_x is None else how.reduced(to_x, 0)
    return to_x, to_weight, None if bias is None or to_bias is None else how.reduced(to_bias, 2), None, None, None


def _channels_last(weight: Tensor) -> Tensor:
    """The layout in which convolutions on images [B, H, W, channels] are fastest; a copy of the weight is cheap."""
    return weight.contiguous(memory_format=torch.channels_last)


def _at(tensor: Tensor, axis: int, position: int) -> Tensor:
    """One slice of an axis, the only one where its length is 1."""
    return tensor.select(axis, position if tensor.shape[axis] > 1 else 0)


# ------------------------------------------------------------------------------------------ what was noted


@dataclass(frozen=True)
class Entry:
    """x [m, C or 1, …] and δ [m, C, …] of one product: the gradient of its weight, not yet multiplied."""

    x: Tensor
    gradient: Tensor
    how: How
    shape: tuple[int, ...]
    """Of the weight, with the axes that it was given with."""
    dtype: torch.dtype
    """Of the weight, and of every gradient that leaves here; x and δ may be rounded."""
    known: Tensor | None = None
    """The gradient [m, C, outputs, inputs, …] where it had to be made for something else."""

    @property
    def clusters(self) -> int:
        """C of a stacked weight."""
        return self.shape[1 if self.how.has(1)[0] else 0]

    def of_clients(self) -> Tensor:
        """The gradient of every client [m, C or 1, outputs, inputs, …], of stacked weights as one."""
        if self.known is not None:
            return self.known
        if not self.how.convolves:
            return torch.matmul(self.gradient.flatten(2, -2).mT, self.x.flatten(2, -2))
        each = [
            self._kernel(self.gradient[k, c], _at(self.x[k], 0, c))
            for k in range(len(self.gradient))
            for c in range(self.gradient.shape[1])
        ]
        return torch.stack(each).unflatten(0, self.gradient.shape[:2])

    def of_weight(self) -> Tensor:
        """The gradient of the weight as it was given: summed over the axes that it does not have."""
        return self._unstacked(self.how.reduced(self.of_clients(), 1), 1 if self.how.has(1)[0] else 0)

    def each(self) -> Tensor:
        """The gradient of every client [m, …], in the shape of the weight behind the client axis."""
        each = self.of_clients()
        return self._unstacked(each if self.how.has(1)[1] else _sum(each, 1), 1)

    def sum(self, weight: Tensor | None) -> Tensor:
        """Σ_k weight_k·g_k over the clients [m], or Σ_k weight_kc·g_kc [m, C] for each cluster; None: all weigh 1."""
        x, gradient, known = self.x, self.gradient, self.known
        if weight is not None and weight.dim() == 2 and self.how.stacked:
            x, gradient, known = self._weigh_stacked(weight)
        elif weight is not None:
            factor = weight.to(self.dtype).reshape(len(weight), -1, *(1,) * (gradient.dim() - 2))
            gradient = (gradient * factor).to(gradient.dtype)
            known = None if known is None else known * factor.reshape(*factor.shape[:2], *(1,) * (known.dim() - 2))
        if known is not None:
            total = known.sum(0)
        elif self.how.convolves:
            total = torch.stack(
                [
                    self._kernel(gradient[:, c].flatten(0, 1), _at(x, 1, c).flatten(0, 1))
                    for c in range(gradient.shape[1])
                ]
            )
        elif gradient.shape[1] == 1:
            total = (gradient.reshape(-1, gradient.shape[-1]).mT @ x.reshape(-1, x.shape[-1])).unsqueeze(0)
        else:
            total = torch.bmm(_by_cluster(gradient).mT, _by_cluster(x).expand(gradient.shape[1], -1, -1))
        return self._unstacked(total if self.how.has(1)[1] else _sum(total, 0), 0)

    def over(self, share: Tensor) -> Entry:
        """The product for losses that were not weighted with `share` [m]."""

        def divided(tensor: Tensor) -> Tensor:
            return (tensor / share.to(self.dtype).reshape(-1, *(1,) * (tensor.dim() - 1))).to(tensor.dtype)

        known = None if self.known is None else divided(self.known)
        return replace(self, gradient=divided(self.gradient), known=known)

    def add_to(self, own: Tensor, alpha: float) -> None:
        """own [m, …] += alpha·g_k, in place, in one call where that is one product.

        Here and where gradients are added up, a weight may have been given with further axes of length 1.
        """
        if self.how.convolves or self.how.stacked == "inputs" or self.known is not None or self.x.dtype != own.dtype:
            own.add_(self.each().reshape(own.shape), alpha=alpha)
            return
        gradient, x = self.gradient.flatten(2, -2), self.x.flatten(2, -2)
        if gradient.shape[1] > 1 and not self.how.has(1)[1]:
            own.add_(self.each().reshape(own.shape), alpha=alpha)
            return
        x = x.expand(*gradient.shape[:2], *x.shape[2:])
        matrices = own.view(-1, gradient.shape[-1], x.shape[-1])
        matrices.baddbmm_(gradient.flatten(0, 1).mT, x.flatten(0, 1), alpha=alpha)

    def _weigh_stacked(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, δ and the known gradient with client k's part of cluster c multiplied by weight_kc."""
        clusters = weight.shape[1]
        inputs = self.how.stacked == "inputs"
        tensor = self.x if inputs else self.gradient
        axis = 3 if self.how.convolves else -1  # of the channels that the clusters share
        weighed = tensor.unflatten(axis, (clusters, -1)).transpose(1, axis if axis > 0 else -2)
        shape = (len(weight), clusters, *(1,) * (weighed.dim() - 2))
        weighed = (
            (weighed * weight.to(self.dtype).reshape(shape)).to(tensor.dtype).transpose(1, axis if axis > 0 else -2)
        )
        weighed = weighed.flatten(axis, axis + 1) if axis > 0 else weighed.flatten(-2)
        return (weighed, self.gradient, None) if inputs else (self.x, weighed, None)

    def _kernel(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Gradient of one convolution's weight from δ [B, outputs, …] and x [B, inputs, …]."""
        assert self.how.window is not None
        like = gradient.new_empty((*self.how.window.channels(x.shape[1], gradient.shape[1]), *self.shape[-2:]))
        return _convolution_backward(gradient, x, _channels_last(like), self.how, NOTHING)[1]

    def _unstacked(self, gradient: Tensor, axis: int) -> Tensor:
        """The gradient of weights used as one, of each: axis C at `axis`."""
        gradient = gradient.to(self.dtype)
        match self.how.stacked:
            case "outputs":
                return gradient.unflatten(axis, (self.clusters, -1))
            case "inputs":
                return gradient.unflatten(axis + 1, (self.clusters, -1)).movedim(axis + 1, axis)
            case _:
                return gradient

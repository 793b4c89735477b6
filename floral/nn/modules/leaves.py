"""The layers of PyTorch that a model of this project can compute itself, each as one or more declared layers.

A module of another class, or with an option that no declared layer has, is not in the result of `declared`. PyTorch
computes it, and its parameters are `Free`: no adaptor changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from floral.core.spec import Refused
from floral.nn.layers import Conv2d, ConvTranspose2d, Embedding, Layer, Linear
from floral.nn.norms import BatchNorm, GroupNorm, LayerNorm

BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
INSTANCE_NORMS = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d


class CallPart(Protocol):
    """call(part, x) applies one part of a module; the part of a module with one layer is ""."""

    @property
    def training(self) -> bool: ...

    def __call__(self, part: str, x: Tensor) -> Tensor: ...


class Unsupported(Refused):
    """Error: a layer has an option with which its running statistics cannot be kept here."""

    def __init__(self, module: nn.Module, problem: str) -> None:
        super().__init__(f"{type(module).__name__} has {problem}")


@dataclass(frozen=True)
class Declared:
    """A PyTorch module as declared layers."""

    layers: Mapping[str, Layer]
    """Part of the module → layer."""
    names: Mapping[str, tuple[str, str]]
    """Name of a parameter or statistic in the module → (part, name in the layer)."""
    forward: Callable[..., object] | None = lambda call, input: call("", input)
    """(call, inputs of the module) → outputs of the module. None: the module's own forward function runs, and what it
    computes with its weight is the declared layer."""


def declared(module: nn.Module) -> Declared | None:
    """Return a module as declared layers. Return None if PyTorch must compute the module.

    Hooks that run before the module may replace its parameters, so a module with such hooks is left to PyTorch. So are
    subclasses with a forward function of their own, except those of linear layers, convolutions and batch norm.
    """
    kind = next((kind for kind in KINDS if isinstance(module, kind)), None)
    if kind is None or module._forward_pre_hooks or hasattr(module, "parametrizations"):
        return None
    as_it_is = type(module).forward is kind.forward
    result = KINDS[kind](module) if as_it_is or kind in SUBCLASSES else None
    held = {name for name, _ in module.named_parameters()}
    if result is None or not held <= result.names.keys():
        return None
    return result if as_it_is else replace(result, forward=None)


def single(layer: Layer, module: nn.Module, forward: Callable[..., object] | None = None, **buffers: str) -> Declared:
    """Return a module that is one layer. `buffers` maps names of the layer's statistics to those of the module."""
    names = {name: ("", name) for name, _ in module.named_parameters()}
    names |= {in_module: ("", name) for name, in_module in buffers.items()}
    return Declared({"": layer}, names) if forward is None else Declared({"": layer}, names, forward)


def linear(module: nn.Linear) -> Declared:
    return single(Linear(module.in_features, module.out_features, module.bias is not None), module)


def convolution(module: nn.Conv1d | nn.Conv2d) -> Declared | None:
    """Return a convolution. One of sequences is a convolution of images of height 1."""
    padding = module.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if padding == "same" and any(total % 2 for total in reach):
            return None
        padding = tuple(total // 2 if padding == "same" else 0 for total in reach)
    if module.padding_mode != "zeros":
        return None
    sequence = isinstance(module, nn.Conv1d)
    kernel, stride, dilation = (pair(side, 1) for side in (module.kernel_size, module.stride, module.dilation))
    around = pair(padding, 0)
    layer = Conv2d(
        module.in_channels, module.out_channels, kernel, stride, around, module.bias is not None,
        dilation=dilation, groups=module.groups,
    )  # fmt: skip
    return single(layer, module, (lambda call, input: call("", input.unsqueeze(-2)).squeeze(-2)) if sequence else None)


def pair(sides: Sequence[int], first: int = 0) -> tuple[int, int]:
    """Return two numbers, one of each axis of an image. A sequence has one axis, and `first` is for the other one."""
    return (sides[0], sides[1]) if len(sides) == 2 else (first, sides[0])


def transposed(module: nn.ConvTranspose2d) -> Declared | None:
    if module.groups != 1 or module.padding_mode != "zeros":
        return None
    sides = (module.kernel_size, module.stride, module.padding, module.output_padding, module.dilation)
    kernel, stride, padding, output_padding, dilation = (pair(side) for side in sides if not isinstance(side, str))
    has_bias = module.bias is not None
    layer = ConvTranspose2d(
        module.in_channels, module.out_channels, kernel, stride, padding, output_padding, has_bias, dilation
    )
    return single(layer, module)


def embedding(module: nn.Embedding) -> Declared | None:
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None
    return single(Embedding(module.num_embeddings, module.embedding_dim, padding=module.padding_idx), module)


def layer_norm(module: nn.LayerNorm) -> Declared | None:
    if len(module.normalized_shape) != 1 or not module.elementwise_affine or module.bias is None:
        return None
    return single(LayerNorm(module.normalized_shape[0], module.eps), module)


def group_norm(module: nn.GroupNorm) -> Declared | None:
    return single(GroupNorm(module.num_channels, module.num_groups, module.eps), module) if module.affine else None


def batch_norm(module: BATCH_NORMS) -> Declared | None:
    """Return a batch norm, unless the module applies it in training as in evaluation (`eval()` in its `train()`).

    Raises:
        Refused: the running statistics depend on more than the last ones and the batch, or there are none.
    """
    if not module.track_running_stats:
        raise Unsupported(
            module,
            "`track_running_stats=False`, so that predictions depend on the rest of the batch; remove it",
        )
    if module.momentum is None:
        raise Unsupported(module, "`momentum=None`, whose statistics need the number of batches; set it to 0.1")
    if not module.training:
        return None
    layer = BatchNorm(module.num_features, module.eps, module.momentum, module.affine)
    return single(layer, module, mean="running_mean", variance="running_var")


def instance_norm(module: INSTANCE_NORMS) -> None:
    """PyTorch computes instance norm.

    Raises:
        Refused: it has running statistics.
    """
    if module.track_running_stats:
        raise Unsupported(
            module, "`track_running_stats=True`, so that it has running statistics; remove it, or use batch norm"
        )


def attention(module: nn.MultiheadAttention) -> Declared | None:
    """Return an attention block as two linear layers: `in_proj` makes queries, keys and values; then `out_proj`.

    Its dropout of attention weights draws from PyTorch's generator, as that of `nn.MultiheadAttention` does.
    """
    if not module._qkv_same_embed_dim or module.bias_k is not None or module.add_zero_attn:
        return None
    width, has_bias = module.embed_dim, module.in_proj_bias is not None
    names = {"in_proj_weight": ("in_proj", "weight"), "out_proj.weight": ("out_proj", "weight")}
    if has_bias:
        names |= {"in_proj_bias": ("in_proj", "bias"), "out_proj.bias": ("out_proj", "bias")}
    layers = {"in_proj": Linear(width, 3 * width, has_bias), "out_proj": Linear(width, width, has_bias)}
    heads, batch_first, rate = module.num_heads, module.batch_first, module.dropout if module.training else 0.0

    def forward(
        call: CallPart,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        del is_causal  # PyTorch requires the mask too
        if key is query and value is query:
            q, k, v = call("in_proj", query).chunk(3, -1)
        else:
            q, k, v = (call("in_proj", x).chunk(3, -1)[part] for part, x in enumerate((query, key, value)))
        if not batch_first and query.dim() == 3:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if attn_mask is not None:
            mask = attn_mask.unflatten(0, (-1, heads)) if attn_mask.dim() == 3 else attn_mask
            scores = masked(scores, mask)
        if key_padding_mask is not None:
            scores = masked(scores, key_padding_mask[..., None, None, :])
        weights = scores.softmax(-1)
        if rate and call.training:
            weights = F.dropout(weights, rate)
        merged = (weights @ v).transpose(-3, -2).flatten(-2)
        out = call("out_proj", merged.transpose(0, 1) if not batch_first and query.dim() == 3 else merged)
        if not need_weights:
            return out, None
        return out, weights.mean(-3) if average_attn_weights else weights

    return Declared(layers, names, forward)


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Return attention scores with a mask: True forbids a position, a number is added to the scores."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(mask, -math.inf)
    return scores + mask


KINDS: Mapping[type[nn.Module], Callable[..., Declared | None]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.ConvTranspose2d: transposed,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.SyncBatchNorm: batch_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.MultiheadAttention: attention,
}
"""Class of PyTorch → function that declares a module of this class, or returns None."""
SUBCLASSES = nn.Linear, nn.Conv2d, *BATCH_NORMS.__args__, *INSTANCE_NORMS.__args__
"""Classes whose subclasses may have a forward function of their own, which calls one function of PyTorch with the
parameters, such as `F.linear`."""

"""Trees: nested dictionaries and tuples of tensors. Their structure is hashable, so it is part of a recording's key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def flatten(tree: Any, into: list[Tensor]) -> Any:
    """The structure of a tree, (keys or None, *parts); its tensors are appended to `into` in order."""
    match tree:
        case Tensor():
            into.append(tree)
            return ...
        case dict():
            return tuple(tree), *[flatten(part, into) for part in tree.values()]
        case tuple():
            return None, *[flatten(part, into) for part in tree]
        case None:
            return None
    raise TypeError(f"{type(tree).__name__} in a tree of tensors; use a dictionary or a tuple")


def unflatten(structure: Any, tensors: Iterator[Tensor]) -> Any:
    """The inverse of `flatten`: a tree with this structure and the next tensors."""
    if structure is ...:
        return next(tensors)
    if structure is None:
        return None
    keys, *parts = structure
    values = [unflatten(part, tensors) for part in parts]
    return tuple(values) if keys is None else dict(zip(keys, values, strict=True))


def layout(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, strides and type of a tensor, without the strides of axes of length 1, which views do not depend on."""
    shape, strides = tensor.shape, tensor.stride()
    if 1 in shape:
        strides = tuple([stride for length, stride in zip(shape, strides, strict=True) if length > 1])
    return shape, strides, tensor.dtype


def copy_with_layout(tensor: Tensor) -> Tensor:
    """A copy with the same strides and offset, so that recorded views of the copy fit the tensor."""
    copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return copy.set_(tensor.untyped_storage().clone(), tensor.storage_offset(), tensor.shape, tensor.stride())

"""Convert trees (nested dictionaries and tuples of tensors) to flat lists of tensors, and back.

The structure of a tree is hashable, so that it can be part of the key of a recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def flatten(tree: Any, into: list[Tensor]) -> Any:
    """Append the tensors of a tree to `into`, in order, and return the structure of the tree.

    The structure of a tensor is Python's object Ellipsis, and that of None is None. The structure of a dictionary is
    the tuple (keys, structure of the first value, structure of the second value, and so on). The structure of a tuple
    has the same form, but with None in place of the keys.
    """
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
    raise TypeError(
        f"a recorded function has an argument or result of type {type(tree).__name__}; "
        "use only tensors, dictionaries, tuples and None"
    )


def unflatten(structure: Any, tensors: Iterator[Tensor]) -> Any:
    """Rebuild a tree from its structure and the next tensors of an iterator. This is the inverse of `flatten`."""
    if structure is ...:
        return next(tensors)
    if structure is None:
        return None
    keys, *parts = structure
    values = [unflatten(part, tensors) for part in parts]
    return tuple(values) if keys is None else dict(zip(keys, values, strict=True))


def layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return the shape, strides and type of a tensor.

    The strides of axes of length 1 are left out, because views do not depend on them.
    """
    shape, strides = tensor.shape, tensor.stride()
    if 1 in shape:
        strides = tuple([stride for length, stride in zip(shape, strides, strict=True) if length > 1])
    return shape, strides, tensor.dtype


def copy_with_layout(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor with the same strides and storage offset.

    The same arguments of `as_strided` therefore give the same view of both tensors.
    """
    copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return copy.set_(tensor.untyped_storage().clone(), tensor.storage_offset(), tensor.shape, tensor.stride())

"""The largest memory of the tensors that a computation makes."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from floral.engine.operations import EachOperation


class PeakMemory(EachOperation):
    """Count the bytes of the tensors that are made in this thread inside a `with` block.

    `peak` is the largest number of bytes that existed at one time, and `total` is the number of all bytes. Tensors that
    existed before the block do not count, and neither does memory that an operation uses only inside itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        read = {address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        created = {address(leaf): leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)}
        for tensor in (tensor for key, tensor in created.items() if key not in read):
            storage = tensor.untyped_storage()
            size = storage.nbytes()
            self.bytes += size
            self.total += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.free, size)
        return results

    def free(self, size: int) -> None:
        """Count that a tensor of `size` bytes no longer exists."""
        self.bytes -= size


def address(tensor: Tensor) -> int:
    """Return the address of the tensor's memory, which a tensor and its views share."""
    return tensor.untyped_storage().data_ptr()

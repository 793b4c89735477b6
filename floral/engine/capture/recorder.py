"""Record every PyTorch operation that a function call executes, after vmap and autograd have been applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.engine.capture.recording import ATEN, VIEW, Name, Operation, Recording, map_tensors, names_in
from floral.engine.operations import EachOperation


class Recorder(EachOperation):
    """Record the operations inside a `with` block, and give each tensor a name.

    A chain of views, such as reshapes and transposes, is recorded as a single `as_strided` of the tensor at its
    beginning, because all of them share its memory. Equal views are recorded only once.
    """

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.recording = Recording()
        self.alive: list[Tensor] = []
        """Tensors with a name. They are kept alive, because their identities are keys of `_names`."""
        self._names: dict[int, str] = {}
        """Identity of a tensor → its name."""
        self._roots: dict[str, str] = {}
        """Name of a view → name of the tensor that it is a view of. Both have the same first element."""
        self._views: dict[tuple[Any, ...], str] = {}
        """(tensor, shape, strides) → name of this view of the tensor. A tensor is a view of itself."""
        for number, tensor in enumerate(inputs):
            self._name(tensor, f"i{number}")
            self._views[f"i{number}", tuple(tensor.shape), tensor.stride()] = f"i{number}"
            self.recording.callers_memory.add(tensor.untyped_storage().data_ptr())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record it.

        Raises:
            Refused: the operation draws random numbers, reads the value of a tensor, or changes a tensor that is not
                one of the function's inputs.
        """
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags or func is ATEN._local_scalar_dense.default:
            raise Refused(
                f"a step calls {func}, which a recording cannot repeat; a step may not draw random numbers or read "
                "the value of a tensor"
            )
        if torch.Tag.inplace_view in func.tags:
            return self._reshaped_in_place(func, args, kwargs)
        out = func(*args, **kwargs)
        if not func._schema.is_mutable and args and begins_with(out, args[0]):
            self._view(out, self.name_of(args[0]).text)
            return out
        named = (
            map_tensors(self.name_of, args),
            {key: map_tensors(self.name_of, value) for key, value in kwargs.items()},
        )
        if func._schema.is_mutable and any(n.startswith("c") for n in names_in((named[0], tuple(named[1].values())))):
            raise Refused(
                f"a step calls {func}, which changes a tensor that is not one of its inputs; change a copy instead"
            )
        several = isinstance(out, tuple | list)
        results = [self._result(result) for result in (out if several else (out,))]
        self.recording.operations.append(Operation(func, *named, results, several))
        return out

    def name_of(self, tensor: Tensor) -> Name:
        """Return the name of a tensor.

        A tensor that is neither an input nor a result of an operation becomes a constant.
        """
        if id(tensor) not in self._names:
            self._name(tensor, f"c{len(self.recording.constants)}")
            self.recording.constants[self._names[id(tensor)]] = tensor
            self.recording.callers_memory.add(tensor.untyped_storage().data_ptr())
        return Name(self._names[id(tensor)])

    def check_for_graph(self) -> None:
        """Check that all recorded tensors are on one device, because a CUDA graph cannot copy from another device.

        Tensors without axes are not checked, because they are passed as numbers. Tensors on PyTorch's device "meta" are
        not checked either, because they have no values.

        Raises:
            Refused: the tensors are on several devices.
        """
        devices = sorted({tensor.device.type for tensor in self.alive if tensor.dim()} - {"meta"})
        if len(devices) > 1:
            names = " and ".join(devices)
            raise Refused(f"a step computes on several devices, {names}; put all tensors of the step on one device")

    def _name(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        self.alive.append(tensor)
        self.recording.layouts[name] = tuple(tensor.shape), tensor.stride(), tensor.dtype
        self.recording.memory[name] = tensor.untyped_storage().data_ptr()

    def _result(self, value: Any) -> Name | None:
        """Return the name of an operation's result, or None if the result is not a tensor.

        A new tensor gets a new name. The result of an in-place operation has the name of the argument that was changed.
        """
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._names:
            name = f"t{len(self.alive)}"
            self._name(value, name)
            self._views[name, tuple(value.shape), value.stride()] = name
        return Name(self._names[id(value)])

    def _view(self, out: Tensor, of: str) -> None:
        """Record a view as `as_strided` of the tensor whose memory it shares.

        An equal view that was recorded before is reused.
        """
        root = self._roots.get(of, of)
        key = (root, tuple(out.shape), out.stride())
        if key not in self._views:
            name = self._views[key] = f"t{len(self.alive)}"
            self.recording.operations.append(Operation(VIEW, (Name(root), *key[1:]), {}, [Name(name)], False))
            self._roots[name] = root
        self._name(out, self._views[key])

    def _reshaped_in_place(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Record an operation that changes the shape of its argument in place, e.g. `squeeze_`, as a view.

        Raises:
            Refused: the argument starts at another element of its memory after the operation.
        """
        name, before = self.name_of(args[0]).text, args[0].detach()
        out = func(*args, **kwargs)
        if not begins_with(out, before):
            raise Refused(
                f"a step calls {func}, which moves the beginning of a tensor in place; use an operation that returns "
                "a new tensor"
            )
        self._view(out, name)
        return out


def begins_with(out: Any, tensor: Any) -> bool:
    """Return whether `out` is a view of `tensor` that starts at the same element."""
    return (
        isinstance(out, Tensor)
        and isinstance(tensor, Tensor)
        and out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        and out.storage_offset() == tensor.storage_offset()
        and out.dtype == tensor.dtype
    )

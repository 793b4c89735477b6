"""A function of tensors recorded once as a flat list of tensor operations, and replayed without Python's structure.

`torch.vmap`, autograd, dictionaries and methods are all traversed at the recording; what remains are the operations on
real memory, in their order. A small model's step spends most of its time in that structure.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from floral.core.spec import Refused
from floral.engine.graphs import Graph, Graphs

MOST = 24
"""Recordings that one function may have, each for other shapes; beyond them it runs as it is."""

ATEN = torch.ops.aten
VIEW = ATEN.as_strided.default
BINDINGS: dict[Any, Callable[..., Any]] = {
    VIEW: torch.as_strided,
    ATEN.add.Tensor: torch.add,
    ATEN.add_.Tensor: torch.Tensor.add_,
    ATEN.addmm.default: torch.addmm,
    ATEN.bmm.default: torch.bmm,
    ATEN.div.Tensor: torch.div,
    ATEN.mm.default: torch.mm,
    ATEN.mul.Tensor: torch.mul,
    ATEN.sum.dim_IntList: torch.sum,
}
"""The commonest operations by functions that take a third of the time to read their arguments."""

OVER: dict[Any, tuple[Callable[..., Any], int, str | None]] = {
    ATEN.add.Tensor: (torch.Tensor.add_, 0, None),
    ATEN.max_pool2d_with_indices_backward.default: (
        ATEN.max_pool2d_with_indices_backward.grad_input._op,
        1,
        "grad_input",
    ),
    ATEN.relu.default: (torch.relu_, 0, None),
    ATEN.threshold_backward.default: (ATEN.threshold_backward.grad_input._op, 0, "grad_input"),
}
"""Operations that may write their result over an argument that nobody reads any more: how, over which, by what keyword.
(Of the input of a max-pool its backward pass reads the shape alone.)"""


class Captured:
    """Calls functions of trees (nested dictionaries and tuples) of tensors by their recordings.

    A recording holds for one `key`, one structure and one layout of the inputs. The function must be straight-line:
    what it does may depend on shapes and on what it closes over, never on values. Inputs may be changed in place.

    With `graphs` recordings are replayed as such. An input that is changed in place may then no longer be used: what
    the function gives back has the change. Unless a call asks for `lasting` results, these are good until the next one.

    Raises:
        Refused: the function draws random numbers, reads a value, or changes what it closes over; or, for graphs,
            it computes on several devices.
    """

    def __init__(self, graphs: Graphs | None = None) -> None:
        self._graphs = graphs
        self._recorded: dict[Hashable, tuple[Callable[..., Any] | Graph, Any]] = {}
        self._lock = RLock()

    def __call__(self, key: Hashable, function: Callable[..., Any], *trees: Any, lasting: bool = True) -> Any:
        flat: list[Tensor] = []
        spec = _flatten(trees, flat)
        full = (key, spec, tuple([_layout(tensor) for tensor in flat]))
        if full not in self._recorded:
            with self._lock:
                if full not in self._recorded and len(self._recorded) < MOST:
                    self._recorded[full] = _record(function, spec, flat, self._graphs)
        with torch.no_grad():
            if full not in self._recorded:
                return function(*trees)
            replay, of_result = self._recorded[full]
            found = replay(flat, lasting) if isinstance(replay, Graph) else replay(*flat)
            return _unflatten(of_result, iter(found))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """What a view depends on; the step along an axis of length 1 is nothing."""
    shape, steps = tensor.shape, tensor.stride()
    if 1 in shape:
        steps = tuple([step for n, step in zip(shape, steps, strict=True) if n > 1])
    return shape, steps, tensor.dtype


def _copy(tensor: Tensor) -> Tensor:
    """A copy that lies in its memory as the tensor does, gaps and repetitions included: views of it are recorded."""
    copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return copy.set_(tensor.untyped_storage().clone(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _record(
    function: Callable[..., Any], spec: Any, flat: list[Tensor], graphs: Graphs | None
) -> tuple[Callable[..., Any] | Graph, Any]:
    """The recording of a function and the structure of its result; its inputs stay as they are."""
    inputs = [_copy(tensor.detach()) for tensor in flat]
    recorder = _Recorder(inputs)
    with recorder:
        result = function(*_unflatten(spec, iter(inputs)))
    found: list[Tensor] = []
    of_result = _flatten(result, found)
    replay = recorder.replay(inputs, found)
    if graphs is None:
        return replay, of_result
    recorder.check_for_graph()
    return Graph(graphs, replay), of_result


class _Recorder(TorchDispatchMode):
    """Writes down every operation, below vmap and autograd."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, dict[str, Any], list[Any], bool]] = []
        """(operation, arguments, keyword arguments, results, whether these are several), all tensors by name."""
        self.names: dict[int, str] = {}
        self.alive: list[Tensor] = []
        """Nobody may take the identity of a tensor that has a name."""
        self.constants: dict[str, Tensor] = {}
        self.layouts: dict[str, tuple[Any, ...]] = {}
        """Shape, steps and type of a name."""
        self.memory: dict[str, int] = {}
        """Address of the memory behind a name, which views share."""
        self.foreign: set[int] = set()
        """Memory of inputs and constants."""
        self.roots: dict[str, str] = {}
        """Of a view that begins where another tensor does, that tensor."""
        self.views: dict[tuple[Any, ...], str] = {}
        """Name of what begins where another tensor does, by that tensor, shape and steps; it is itself one of them."""
        for number, tensor in enumerate(inputs):
            self._name(tensor, f"i{number}")
            self.views[f"i{number}", tuple(tensor.shape), tensor.stride()] = f"i{number}"
            self.foreign.add(tensor.untyped_storage().data_ptr())

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else the first recording of a process imports the compiler, which it never calls, in over a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags or func is ATEN._local_scalar_dense.default:
            raise Refused(f"a step calls {func}, which a recording cannot repeat")
        if torch.Tag.inplace_view in func.tags:
            return self._relaid(func, args, kwargs)
        out = func(*args, **kwargs)
        if not func._schema.is_mutable and args and _begins_alike(out, args[0]):
            self._view(out, self._named(args[0]).name)
            return out
        given = _map(self._named, args), {key: _map(self._named, value) for key, value in kwargs.items()}
        if func._schema.is_mutable and any(n.startswith("c") for n in _names_in((given[0], tuple(given[1].values())))):
            raise Refused(f"a step changes by {func} what is no input of it")
        changed = out if isinstance(out, tuple | list) else (out,)
        self.steps.append((func, *given, [self._result(some) for some in changed], isinstance(out, tuple | list)))
        return out

    def _name(self, tensor: Tensor, name: str) -> None:
        self.names[id(tensor)] = name
        self.alive.append(tensor)
        self.layouts[name] = tuple(tensor.shape), tensor.stride(), tensor.dtype
        self.memory[name] = tensor.untyped_storage().data_ptr()

    def _view(self, out: Tensor, of: str) -> None:
        """A view straight of the tensor that a chain of views began with; the same view is made once."""
        root = self.roots.get(of, of)
        layout = (root, tuple(out.shape), out.stride())
        if layout not in self.views:
            name = self.views[layout] = f"t{len(self.alive)}"
            self.steps.append((VIEW, (_Name(root), *layout[1:]), {}, [_Name(name)], False))
            self.roots[name] = root
        self._name(out, self.views[layout])

    def _relaid(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """A tensor that changes its own shape, as squeeze_ does: from now on it is a view of what it was."""
        name, before = self._named(args[0]).name, args[0].detach()
        out = func(*args, **kwargs)
        if not _begins_alike(out, before):
            raise Refused(f"a step moves the beginning of a tensor by {func}")
        self._view(out, name)
        return out

    def _named(self, tensor: Tensor) -> _Name:
        """The name of an argument; what is neither an input nor a result is a constant."""
        if id(tensor) not in self.names:
            self._name(tensor, f"c{len(self.constants)}")
            self.constants[self.names[id(tensor)]] = tensor
            self.foreign.add(tensor.untyped_storage().data_ptr())
        return _Name(self.names[id(tensor)])

    def _result(self, value: Any) -> Any:
        """The name of a result: a new one, but for an operation in place."""
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self.names:
            name = f"t{len(self.alive)}"
            self._name(value, name)
            self.views[name, tuple(value.shape), value.stride()] = name
        return _Name(self.names[id(value)])

    def check_for_graph(self) -> None:
        """Raise Refused unless all tensors lie on one device: a graph has no copies from another.

        A number is part of an operation wherever it lies, and of a shape without values (meta) nothing is computed.
        """
        kinds = sorted({tensor.device.type for tensor in self.alive if tensor.dim()} - {"meta"})
        if len(kinds) > 1:
            raise Refused(f"a step computes on several devices, {' and '.join(kinds)}")

    def replay(self, inputs: list[Tensor], results: list[Tensor]) -> Callable[..., Any]:
        """A function of the inputs that does what was recorded and is needed for the results."""
        given_back = [self._named(tensor).name for tensor in results]
        steps = self._distinct(given_back)
        wanted = set(given_back)
        lines = [f"    return [{', '.join(given_back)}]"]
        namespace: dict[str, Any] = dict(self.constants)
        for number, (func, args, kwargs, outs, several) in reversed(list(enumerate(steps))):
            names = [out.name for out in outs if out is not None]
            if not func._schema.is_mutable and wanted.isdisjoint(names):
                continue
            used = _names_in(args) | _names_in(tuple(kwargs.values()))
            last = sorted(name for name in used - wanted if name.startswith("t"))
            later = wanted - set(names)
            wanted |= used
            call = ", ".join([*(_code(arg, namespace) for arg in args), *_keywords(kwargs, namespace)])
            namespace[f"f{number}"] = BINDINGS.get(func, func._op)
            if func in OVER and self._may_go_over(args[OVER[func][1]], outs[0], used, later):
                namespace[f"f{number}"], position, keyword = OVER[func]
                call += f", {keyword}={args[position].name}" if keyword else ""
            left = ", ".join("_" if out is None else out.name for out in outs) + ("," if several else "")
            frees = f"; {' = '.join(last)} = None" if last else ""
            lines.append(f"    {left + ' = ' if left else ''}f{number}({call}){frees}")
        given = ", ".join(f"i{number}" for number in range(len(inputs)))
        exec("\n".join([f"def replay({given}):", *reversed(lines)]), namespace)  # written above, from names alone
        return namespace["replay"]

    def _may_go_over(self, arg: Any, out: _Name, used: set[str], later: set[str]) -> bool:
        """Whether the result fits where an argument lies, whose memory nobody else reads from now on."""
        if (
            not isinstance(arg, _Name)
            or not arg.name.startswith("t")
            or self.layouts[arg.name] != self.layouts[out.name]
        ):
            return False
        others = later | (used - {arg.name})
        return self.memory[arg.name] not in {self.memory[name] for name in others} | self.foreign

    def _distinct(self, given_back: list[str]) -> list[Any]:
        """The steps without those that compute again what is there already.

        Only of memory that nobody ever changes can that be said: no step, and no caller what it got back.
        """
        mutable = [(func, args, outs) for func, args, _, outs, _ in self.steps if func._schema.is_mutable]
        changed = {self.memory[name] for _, args, outs in mutable for name in _names_in((args, outs))}
        changed |= {self.memory[name] for name in given_back}
        same: dict[str, str] = {}
        seen: dict[Any, list[Any]] = {}
        distinct = []
        for func, args, kwargs, outs, several in self.steps:
            args, kwargs = _renamed(args, same), {key: _renamed(value, same) for key, value in kwargs.items()}
            outs = [_renamed(out, same) for out in outs]
            names = _names_in((args, tuple(kwargs.values()), outs))
            if changed.isdisjoint(self.memory[name] for name in names):
                key = (func, repr(args), repr(kwargs))
                if key in seen:
                    same |= {ours.name: first.name for ours, first in zip(outs, seen[key], strict=True) if ours}
                    continue
                seen[key] = outs
            distinct.append((func, args, kwargs, outs, several))
        return distinct


def _begins_alike(out: Any, tensor: Any) -> bool:
    """Whether a result is a view of an argument from its first element on."""
    return (
        isinstance(out, Tensor)
        and isinstance(tensor, Tensor)
        and out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        and out.storage_offset() == tensor.storage_offset()
        and out.dtype == tensor.dtype
    )


@dataclass(frozen=True)
class _Name:
    """A tensor among the arguments of a recorded operation."""

    name: str


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """An argument with other names for its tensors."""
    if isinstance(value, _Name):
        return _Name(names.get(value.name, value.name))
    return type(value)(_renamed(some, names) for some in value) if isinstance(value, tuple | list) else value


def _map(change: Callable[[Tensor], Any], value: Any) -> Any:
    """An argument with its tensors changed; arguments are tensors, lists of them, and plain values."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_map(change, some) for some in value) if isinstance(value, tuple | list) else value


def _names_in(value: Any) -> set[str]:
    if isinstance(value, _Name):
        return {value.name}
    return set().union(*map(_names_in, value)) if isinstance(value, tuple | list) else set()


def _code(value: Any, namespace: dict[str, Any]) -> str:
    """An argument as source: names and numbers as they are, everything else as an entry of the namespace."""
    if isinstance(value, _Name):
        return value.name
    if isinstance(value, list | tuple) and _names_in(value):
        return f"[{', '.join(_code(some, namespace) for some in value)}]"
    name = f"k{len(namespace)}"
    namespace[name] = value
    return name


def _keywords(kwargs: dict[str, Any], namespace: dict[str, Any]) -> Iterator[str]:
    return (f"{key}={_code(value, namespace)}" for key, value in kwargs.items())


def _flatten(tree: Any, into: list[Tensor]) -> Any:
    """The structure of a tree, (keys or None, *parts); its tensors are appended to `into` in order."""
    match tree:
        case Tensor():
            into.append(tree)
            return ...
        case dict():
            return tuple(tree), *[_flatten(part, into) for part in tree.values()]
        case tuple():
            return None, *[_flatten(part, into) for part in tree]
        case None:
            return None
    raise TypeError(f"{type(tree).__name__} in a tree of tensors")


def _unflatten(spec: Any, tensors: Iterator[Tensor]) -> Any:
    """The inverse of `_flatten`."""
    if spec is ...:
        return next(tensors)
    if spec is None:
        return None
    keys, *parts = spec
    made = [_unflatten(part, tensors) for part in parts]
    return tuple(made) if keys is None else dict(zip(keys, made, strict=True))

"""The class `Captured`, which calls functions by replaying recordings of their PyTorch operations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from floral.engine.capture.emit import replay_function
from floral.engine.capture.optimise import instructions
from floral.engine.capture.recorder import Recorder
from floral.engine.capture.trees import copy_with_layout, flatten, layout, unflatten
from floral.engine.graphs import Graph, Graphs

MAX_RECORDINGS = 24
"""Maximum number of recordings of one `Captured`, one for each combination of shapes. Calls with further shapes run
without a recording."""


class Captured:
    """Call functions by replaying recordings of their PyTorch operations.

    Arguments and results are trees: nested dictionaries and tuples of tensors. The caller names the function by a
    `key`. The first call with a new key, tree structure, shape, stride or type makes a recording. What the function
    does may depend on shapes and on constants, but never on the values of tensors. It may change its inputs in place.

    With `graphs`, recordings are replayed as CUDA graphs. If the function changes an input in place, the caller must
    then use the returned tensor instead of the input. Such a result is valid until the next call. With `lasting`, all
    results stay valid.

    Raises:
        Refused: the function draws random numbers, reads the value of a tensor, changes a tensor that is not one of its
            inputs, or calls an operation that TorchScript does not have. With `graphs`, it is also refused if it
            computes on several devices.
    """

    def __init__(self, graphs: Graphs | None = None) -> None:
        self._graphs = graphs
        self._recorded: dict[Hashable, tuple[Callable[..., Any] | Graph, Any]] = {}
        """Key → replay, and the structure of its result."""
        self._lock = RLock()

    def __call__(self, key: Hashable, function: Callable[..., Any], *trees: Any, lasting: bool = True) -> Any:
        """Return `function(*trees)`, computed by replaying its recording.

        The recording is made at the first call with the same key, the same structure of the trees, and the same shapes,
        strides and types of the tensors. The next call may overwrite the results, except with `lasting`.
        """
        inputs: list[Tensor] = []
        structure = flatten(trees, inputs)
        full_key = (key, structure, tuple([layout(tensor) for tensor in inputs]))
        if full_key not in self._recorded:
            with self._lock:
                if full_key not in self._recorded and len(self._recorded) < MAX_RECORDINGS:
                    self._recorded[full_key] = record(function, structure, inputs, self._graphs)
        with torch.no_grad():
            if full_key not in self._recorded:
                return function(*trees)
            replay, result_structure = self._recorded[full_key]
            results = replay(inputs, lasting) if isinstance(replay, Graph) else replay(*inputs)
            return unflatten(result_structure, iter(results))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch off Python's collection of cyclic garbage inside a `with` block, or in a decorated function.

    A recording makes many small objects. For them, Python would search all objects of the process several times.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@no_garbage_collection()
def record(
    function: Callable[..., Any], structure: Any, inputs: list[Tensor], graphs: Graphs | None
) -> tuple[Callable[..., Any] | Graph, Any]:
    """Record a function; return the function that replays it, and the structure of its result.

    The recorded call runs on copies of the inputs, so the inputs do not change.

    Raises:
        Refused: the function cannot be recorded, for one of the reasons at `Captured`.
    """
    copies = [copy_with_layout(tensor.detach()) for tensor in inputs]
    recorder = Recorder(copies)
    with recorder:
        result = function(*unflatten(structure, iter(copies)))
    tensors: list[Tensor] = []
    result_structure = flatten(result, tensors)
    results = [recorder.name_of(tensor).text for tensor in tensors]
    recording = recorder.recording
    replay = replay_function(recording, instructions(recording, results), len(copies), results)
    if graphs is None:
        return replay, result_structure
    recorder.check_for_graph()
    return Graph(graphs, replay), result_structure

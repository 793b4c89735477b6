"""`Captured`, which calls functions by replaying recordings of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
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
    """Calls functions of trees (nested dictionaries and tuples) of tensors by their recordings.

    A recording holds for one `key`, one structure and one layout of the inputs. The function must be straight-line:
    what it does may depend on shapes and on constants that it closes over, never on values. It may change inputs in
    place.

    With `graphs`, recordings are replayed as CUDA graphs. The caller must then drop an input that is changed in place
    and use the result instead. Results are valid until the next call, or for good if the call says `lasting`.

    Raises:
        Refused: the function draws random numbers, reads a value, or changes a constant; or, with graphs, it computes
            on several devices.
    """

    def __init__(self, graphs: Graphs | None = None) -> None:
        self._graphs = graphs
        self._recorded: dict[Hashable, tuple[Callable[..., Any] | Graph, Any]] = {}
        """Key → replay, and the structure of its result."""
        self._lock = RLock()

    def __call__(self, key: Hashable, function: Callable[..., Any], *trees: Any, lasting: bool = True) -> Any:
        """The result of `function(*trees)`, recorded at the first call with this key, structure and layout."""
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


def record(
    function: Callable[..., Any], structure: Any, inputs: list[Tensor], graphs: Graphs | None
) -> tuple[Callable[..., Any] | Graph, Any]:
    """Record a function; returns its replay and the structure of its result.

    The function runs on copies, so the inputs do not change.

    Raises:
        Refused: see `Captured`.
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

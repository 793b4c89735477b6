"""Turn a recording into the instructions of its replay: remove operations that are not needed, and reuse memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from floral.engine.capture.recording import ATEN, Name, Operation, Recording, names_in, renamed


@dataclass(frozen=True)
class InPlace:
    """A version of an operation that writes its result into the memory of one of its arguments."""

    function: Any
    position: int
    """Position of the argument that is overwritten."""
    keyword: str | None = None
    """Keyword under which the argument is passed a second time, as the memory for the result."""


IN_PLACE: dict[Any, InPlace] = {
    ATEN.add.Tensor: InPlace(ATEN.add_.Tensor, 0),
    # the backward pass of a max-pool reads only the shape of the input
    ATEN.max_pool2d_with_indices_backward.default: InPlace(
        ATEN.max_pool2d_with_indices_backward.grad_input, 1, "grad_input"
    ),
    ATEN.relu.default: InPlace(ATEN.relu_.default, 0),
    ATEN.threshold_backward.default: InPlace(ATEN.threshold_backward.grad_input, 0, "grad_input"),
}


@dataclass(frozen=True)
class Instruction:
    """One operation of a replay, with the names of the tensors whose memory is freed after it."""

    operation: Operation
    in_place: InPlace | None
    """The form that overwrites an argument, where nothing reads this argument afterwards."""
    frees: list[str]
    """Names of results that nothing reads afterwards: their memory is freed."""


def instructions(recording: Recording, results: list[str]) -> list[Instruction]:
    """Return the operations that are needed for the `results`, in order and without repeated operations."""
    reversed_instructions: list[Instruction] = []
    needed = set(results)
    for operation in reversed(without_repeats(recording, results)):
        if not operation.mutates and needed.isdisjoint(operation.writes):
            continue
        reads = operation.reads
        frees = sorted(name for name in reads - needed if name.startswith("t"))
        needed_later = needed - set(operation.writes)
        needed |= reads
        form = in_place(recording, operation, needed_later)
        reversed_instructions.append(Instruction(operation, form, frees))
    return reversed_instructions[::-1]


def in_place(recording: Recording, operation: Operation, needed_later: set[str]) -> InPlace | None:
    """Return the version of an operation that writes its result into the memory of an argument.

    Return None if there is no such version, or if a later operation or the caller still needs this memory.
    """
    form = IN_PLACE.get(operation.function)
    if form is None:
        return None
    argument, result = operation.args[form.position], operation.results[0]
    if not isinstance(argument, Name) or not argument.text.startswith("t") or result is None:
        return None
    if recording.layouts[argument.text] != recording.layouts[result.text]:
        return None
    needed = needed_later | (operation.reads - {argument.text})
    occupied = {recording.memory[name] for name in needed} | recording.callers_memory
    return None if recording.memory[argument.text] in occupied else form


def without_repeats(recording: Recording, results: list[str]) -> list[Operation]:
    """Return the operations without those that repeat an earlier operation on the same arguments.

    An operation can be removed only if the memory of its arguments and results never changes. Memory may change if an
    operation works on it in place. It may also change if it belongs to a result of the function, because callers may
    change results.
    """
    mutating = [operation for operation in recording.operations if operation.mutates]
    changed = {
        recording.memory[name] for operation in mutating for name in names_in((operation.args, operation.results))
    }
    changed |= {recording.memory[name] for name in results}
    same: dict[str, str] = {}
    first_results: dict[Any, list[Name | None]] = {}
    distinct = []
    for operation in recording.operations:
        operation = replace(
            operation,
            args=renamed(operation.args, same),
            kwargs={key: renamed(value, same) for key, value in operation.kwargs.items()},
            results=renamed(operation.results, same),
        )
        if changed.isdisjoint(recording.memory[name] for name in operation.reads | set(operation.writes)):
            key = (operation.function, repr(operation.args), repr(operation.kwargs))
            if key in first_results:
                pairs = zip(operation.results, first_results[key], strict=True)
                same |= {again.text: first.text for again, first in pairs if again is not None and first is not None}
                continue
            first_results[key] = operation.results
        distinct.append(operation)
    return distinct

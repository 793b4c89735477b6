"""Write and compile the Python function that replays a recording."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from floral.engine.capture.optimise import Instruction
from floral.engine.capture.recording import ATEN, VIEW, Name, Recording, names_in

FASTER: dict[Any, Callable[..., Any]] = {
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
"""Equal functions for the most frequent operations. They parse their arguments in a third of the time."""


def replay_function(
    recording: Recording, instructions: list[Instruction], inputs: int, results: list[str]
) -> Callable[..., Any]:
    """Compile the instructions to a Python function, which returns the tensors named in `results`.

    `inputs` is the number of tensors that the function takes as arguments.
    """
    source, namespace = source_of(recording, instructions, inputs, results)
    exec(source, namespace)  # the source contains only names made in this package
    return namespace["replay"]


def source_of(
    recording: Recording, instructions: list[Instruction], inputs: int, results: list[str]
) -> tuple[str, dict[str, Any]]:
    """Return the source text of the function `replay`, and the dictionary of operations and constants that it uses."""
    namespace: dict[str, Any] = dict(recording.constants)
    lines = [f"def replay({', '.join(f'i{number}' for number in range(inputs))}):"]
    lines += [f"    {statement(instruction, namespace)}" for instruction in instructions]
    lines += [f"    return [{', '.join(results)}]"]
    return "\n".join(lines), namespace


def statement(instruction: Instruction, namespace: dict[str, Any]) -> str:
    """Return one line of the replay function, e.g. `t3 = add_5(t2, i0); t2 = None`.

    The operation, here `add_5`, is added to `namespace`, the dictionary of names that the function uses.
    """
    operation, in_place = instruction.operation, instruction.in_place
    arguments = [code(argument, namespace) for argument in operation.args]
    arguments += [f"{key}={code(value, namespace)}" for key, value in operation.kwargs.items()]
    if in_place is not None and in_place.keyword is not None:
        arguments.append(f"{in_place.keyword}={operation.args[in_place.position].text}")
    function = f"{operation.function._opname}{'_over' if in_place else ''}_{len(namespace)}"
    namespace[function] = in_place.function if in_place else FASTER.get(operation.function, operation.function._op)
    targets = ", ".join("_" if result is None else result.text for result in operation.results)
    targets += "," if operation.returns_several else ""
    frees = f"; {' = '.join(instruction.frees)} = None" if instruction.frees else ""
    return f"{targets + ' = ' if targets else ''}{function}({', '.join(arguments)}){frees}"


def code(value: Any, namespace: dict[str, Any]) -> str:
    """Return an argument as source text: a tensor's name, a literal, or the name of a value added to `namespace`."""
    if isinstance(value, Name):
        return value.text
    if type(value) in (int, bool) or (type(value) is float and math.isfinite(value)):
        return repr(value)
    if type(value) is tuple and all(type(part) is int for part in value):
        return repr(value)
    if isinstance(value, list | tuple) and names_in(value):
        return f"[{', '.join(code(part, namespace) for part in value)}]"
    name = f"value_{len(namespace)}"
    namespace[name] = value
    return name

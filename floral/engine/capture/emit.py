"""Write the instructions of a replay as a TorchScript graph. Its interpreter runs them without Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from floral.core.spec import Refused
from floral.engine.capture.optimise import Instruction
from floral.engine.capture.recording import Name, Recording, names_in

TENSORS = torch.ListType(torch.TensorType.get())
MEMORY_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
"""The place of a memory format in this list is its number in TorchScript."""


def replay_function(
    recording: Recording, instructions: list[Instruction], inputs: int, results: list[str]
) -> Callable[..., list[Tensor]]:
    """Return a function that runs the instructions and returns the tensors named in `results`.

    `inputs` is the number of tensors that the function takes as arguments. It frees each tensor after the last
    operation that reads it. While it runs, it does not hold Python's lock, so several workers run at once.
    """
    function = torch._C._create_function_from_graph("replay", graph_of(recording, instructions, inputs, results))

    constants = tuple(recording.constants.values())

    def replay(*arguments: Tensor) -> list[Tensor]:
        # The optimiser of TorchScript would take longer than it saves, and could change the results.
        before = torch._C._get_graph_executor_optimize(False)
        try:
            return function(*arguments, *constants)
        finally:
            torch._C._set_graph_executor_optimize(before)

    return replay


def graph_of(recording: Recording, instructions: list[Instruction], inputs: int, results: list[str]) -> Any:
    """Return the graph of `replay_function`. Its inputs are the function's arguments, and then the constants.

    The text of the graph, `str(graph)`, has one line per operation.
    """
    writer = Writer()
    for name in (*(f"i{number}" for number in range(inputs)), *recording.constants):
        writer.values[name] = writer.graph.addInput(name)
    for instruction in instructions:
        writer.add(instruction)
    writer.graph.registerOutput(writer.list_of(TENSORS, map(Name, results)))
    return writer.graph


class Writer:
    """A graph that is being written, its values by the names of the recorded tensors, and its constants by their text.

    Equal constants are written once.
    """

    def __init__(self) -> None:
        self.graph: Any = torch._C.Graph()
        self.values: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}

    def add(self, instruction: Instruction) -> None:
        """Append an operation to the graph. Its results get the names that they have in the recording.

        Raises:
            Refused: TorchScript has no operation for these arguments.
        """
        operation, form = instruction.operation, instruction.in_place
        function = form.function if form else operation.function
        schema = function._schema
        keywords = dict(operation.kwargs)
        if form is not None and form.keyword is not None:
            keywords[form.keyword] = operation.args[form.position]
        arguments = [*operation.args]
        arguments += [keywords.get(a.name, a.default_value) for a in schema.arguments[len(arguments) :]]
        inputs = [self.value(a.type, value) for a, value in zip(schema.arguments, arguments, strict=True)]
        for place, (expected, argument) in enumerate(zip(schema.arguments, arguments, strict=True)):
            is_number = isinstance(argument, int | float) and expected.type.kind() == "TensorType"
            if is_number and (isinstance(argument, bool) or must_be_tensor(function, place)):
                inputs[place] = self.append("prim::NumToTensor", [inputs[place]], 1).output()
        node = self.append(schema.name, inputs, len(schema.returns))
        if node.schema() == "(no schema)":
            raise Refused(f"a step calls {function} with arguments that TorchScript does not take")
        if [returned.type.kind() for returned in schema.returns] == ["ListType"]:
            node.output().setType(TENSORS)
            node = self.append("prim::ListUnpack", [node.output()], len(operation.results))
        for result, value in zip(operation.results, node.outputs(), strict=True):
            if result is not None:
                self.values[result.text] = value

    def append(self, kind: str, inputs: list[Any], outputs: int) -> Any:
        return self.graph.insertNode(self.graph.create(kind, inputs, outputs))

    def value(self, type: Any, value: Any) -> Any:
        """Return the graph's value for an argument. `type` is its type in the schema of the operation."""
        if isinstance(value, Name):
            return self.values[value.text]
        if type.kind() == "OptionalType" and value is not None:
            type = type.getElementType()
        if isinstance(value, list | tuple):
            if not value or names_in(value):
                return self.list_of(type, value)
            value = list(value)
        elif isinstance(value, torch.memory_format):
            value = MEMORY_FORMATS.index(value)
        elif isinstance(value, int) and type.kind() == "FloatType":
            value = float(value)
        if (text := repr(value)) not in self.constants:
            self.constants[text] = self.graph.insertConstant(value)
        return self.constants[text]

    def list_of(self, type: Any, values: Iterable[Any]) -> Any:
        """Return the graph's value for a list of this type."""
        parts = [self.value(type.getElementType(), value) for value in values]
        listed = self.append("prim::ListConstruct", parts, 1).output()
        listed.setType(type)
        return listed


def must_be_tensor(function: Any, place: int) -> bool:
    """Return whether no version of an operation takes a number as the argument at this place, but only a tensor."""
    schemas = [getattr(function.overloadpacket, name)._schema for name in function.overloadpacket.overloads()]
    kinds = {schema.arguments[place].type.kind() for schema in schemas if place < len(schema.arguments)}
    return kinds == {"TensorType"}

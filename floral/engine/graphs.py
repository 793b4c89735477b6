"""Replay recordings as CUDA graphs.

One call starts all GPU kernels of a local step. The kernels read and write buffers at fixed addresses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WARM_UP_RUNS = 3
"""Number of runs before a capture, in which libraries allocate their handles and workspaces."""

Make = Callable[[Callable[[], list[Tensor]]], tuple[list[Tensor], Callable[[], Any]]]
"""Makes a graph of a function without arguments. Returns its results, and a function that computes them again in the
same memory."""


class Graphs:
    """The function that makes CUDA graphs, and the input buffers that all graphs of a run share."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self._buffers: dict[Hashable, Tensor] = {}

    def buffer(self, place: int, like: Tensor) -> Tensor:
        """Return the buffer for input number `place`, which has the shape, strides and type of the tensor `like`.

        The strides must be the same, because the recording contains views of the input.
        """
        layout = (place, like.shape, like.stride(), like.dtype)
        if layout not in self._buffers:
            self._buffers[layout] = torch.empty_strided(*layout[1:3], dtype=like.dtype, device=like.device)
        return self._buffers[layout]


@dataclass
class Graph:
    """A recording that is replayed as a CUDA graph. The CUDA graph is made at the first call.

    Inputs are copied into buffers, and results are copied out of them. A tensor that the step changes in place is not
    copied out, because it is as large as the weights of all clients. The caller gets the buffer itself and passes it to
    the next step. Graphs share the buffers of inputs with the same position, shape, strides and type. A buffer that was
    returned as a result is therefore valid only until one of these graphs is called again.

    Only one thread at a time may call a graph, because all operations run in the order of one CUDA stream.
    """

    shared: Graphs
    replay: Callable[..., list[Tensor]]
    inputs: list[Tensor] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)
    run: Callable[[], Any] | None = None

    def __call__(self, arguments: Sequence[Tensor], lasting: bool) -> list[Tensor]:
        """Return the results of `replay(*arguments)`.

        With `lasting`, all results are copies, which later calls do not change.
        """
        if self.run is None:
            self.inputs = [self.shared.buffer(place, tensor) for place, tensor in enumerate(arguments)]
            arguments = [tensor.clone() for tensor in arguments]  # the warm-up runs change the buffers
            load(self.inputs, arguments)
            self.results, self.run = self.shared.make(lambda: self.replay(*self.inputs))
        load(self.inputs, arguments)
        self.run()
        addresses = set() if lasting else {tensor.data_ptr() for tensor in self.inputs}
        return [tensor if tensor.data_ptr() in addresses else tensor.clone() for tensor in self.results]


def load(buffers: Sequence[Tensor], arguments: Sequence[Tensor]) -> None:
    """Copy the arguments into the buffers, with one call per data type.

    An argument that already is the buffer for its position is not copied.
    """
    addresses = {buffer.data_ptr() for buffer in buffers}
    into: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    out_of: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for buffer, tensor in zip(buffers, arguments, strict=True):
        if buffer.data_ptr() == tensor.data_ptr() or not tensor.numel():
            continue
        if tensor.data_ptr() in addresses:  # it is the buffer of another input, which will be overwritten
            tensor = tensor.clone()
        for axis in repeated(buffer):
            buffer, tensor = buffer.narrow(axis, 0, 1), tensor.narrow(axis, 0, 1)
        into[buffer.dtype].append(buffer)
        out_of[buffer.dtype].append(tensor)
    for dtype, targets in into.items():
        torch._foreach_copy_(targets, out_of[dtype])  # type: ignore[reportPrivateImportUsage]


def repeated(tensor: Tensor) -> list[int]:
    """Return the axes along which all entries of a tensor share the same memory, e.g. after `expand`."""
    return [axis for axis, step in enumerate(tensor.stride()) if step == 0 and tensor.shape[axis] > 1]


def cuda_graphs() -> Make:
    """Return a function that makes CUDA graphs on the current device.

    The graphs share one memory pool for temporary tensors, because they run one at a time. The results of all graphs
    stay allocated, so that two graphs never write their results to the same memory.
    """
    pool = torch.cuda.graph_pool_handle()

    def make(function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], Any]]:
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                function()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            results = function()
        return results, graph.replay

    return make

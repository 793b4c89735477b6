"""Recordings as graphs of a GPU: all kernels of a step start in one call, on buffers that stay where they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WARM = 3
"""Runs before a capture, in which libraries make their handles and workspaces."""

Make = Callable[[Callable[[], list[Tensor]]], tuple[list[Tensor], Callable[[], Any]]]
"""Of a function without arguments: its results, and what computes them anew in the same memory."""


class Graphs:
    """What the graphs of a run share: how they are made, and the buffers that their inputs lie in."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self._buffers: dict[Hashable, Tensor] = {}

    def buffer(self, place: int, like: Tensor) -> Tensor:
        """The buffer of an input at this place, laid out in memory as the input is: views of it were recorded."""
        layout = (place, like.shape, like.stride(), like.dtype)
        if layout not in self._buffers:
            self._buffers[layout] = torch.empty_strided(*layout[1:3], dtype=like.dtype, device=like.device)
        return self._buffers[layout]


@dataclass
class Graph:
    """A recording as a graph, made at its first call: inputs are copied into buffers, results are copied out of them.

    What a step changes in place is the one exception, for it is as large as all clients' weights: the caller gets the
    buffer itself and hands it to the next step, which finds it where it already is. All graphs that have an input of
    this layout at this place share the buffer, so such a result is good until the next call of any of them.

    Everything happens in the order of one stream, so one thread at a time may call.
    """

    shared: Graphs
    replay: Callable[..., list[Tensor]]
    inputs: list[Tensor] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)
    run: Callable[[], Any] | None = None

    def __call__(self, given: Sequence[Tensor], lasting: bool) -> list[Tensor]:
        """The results of `replay(*given)`; with `lasting` all of them are the caller's own."""
        if self.run is None:
            self.inputs = [self.shared.buffer(place, tensor) for place, tensor in enumerate(given)]
            given = [tensor.clone() for tensor in given]  # what lies in the buffers is about to be changed
            load(self.inputs, given)
            self.results, self.run = self.shared.make(lambda: self.replay(*self.inputs))
        load(self.inputs, given)
        self.run()
        own = set() if lasting else {tensor.data_ptr() for tensor in self.inputs}
        return [tensor if tensor.data_ptr() in own else tensor.clone() for tensor in self.results]


def load(buffers: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy into the buffers what does not lie in them already, in one call for each type."""
    addresses = {buffer.data_ptr() for buffer in buffers}
    into: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    out_of: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for buffer, tensor in zip(buffers, given, strict=True):
        if buffer.data_ptr() == tensor.data_ptr() or not tensor.numel():
            continue
        if tensor.data_ptr() in addresses:  # of another input, which is about to be written to
            tensor = tensor.clone()
        for axis in repeated(buffer):
            buffer, tensor = buffer.narrow(axis, 0, 1), tensor.narrow(axis, 0, 1)
        into[buffer.dtype].append(buffer)
        out_of[buffer.dtype].append(tensor)
    for dtype, those in into.items():
        torch._foreach_copy_(those, out_of[dtype])  # type: ignore[reportPrivateImportUsage]


def repeated(tensor: Tensor) -> list[int]:
    """The axes along which a tensor is expanded: its entries there are one."""
    return [axis for axis, step in enumerate(tensor.stride()) if step == 0 and tensor.shape[axis] > 1]


def cuda_graphs() -> Make:
    """Graphs of the current CUDA device. They share memory for what lives within one replay: they run one at a time,
    and results of different ones never lie in the same place, for all of them are kept."""
    pool = torch.cuda.graph_pool_handle()

    def make(function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], Any]]:
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM):
                function()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            results = function()
        return results, graph.replay

    return make

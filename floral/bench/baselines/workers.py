"""Worker threads of a PyTorch baseline, and the memory that each worker reuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from floral.core.spec import Params


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    """Return a pool of Python threads. In each of them, PyTorch uses only one thread."""
    return ThreadPoolExecutor(workers, "baseline", initializer=torch.set_num_threads, initargs=(1,))


def sum_over_workers(work: Callable[[int, Sequence[Tensor]], Params], chunks: Sequence[Tensor], workers: int) -> Params:
    """Compute `work` in several threads, and return the sum of the results.

    Thread i computes work(i, chunks[i::workers]). A chunk holds the batches of some clients.
    """
    if workers == 1:
        return work(0, chunks)
    totals = list(pool(workers).map(lambda worker: work(worker, chunks[worker::workers]), range(workers)))
    for total in totals[1:]:
        for name, value in total.items():
            totals[0][name] += value
    return totals[0]


@dataclass
class Buffers:
    """Named tensors whose memory one worker uses again in every step."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised tensor of this shape, in the memory called `name`.

        If the memory is too small, new memory replaces it.
        """
        size = math.prod(shape)
        if name not in self.tensors or self.tensors[name].numel() < size:
            self.tensors[name] = torch.empty(size)
        return self.tensors[name][:size].view(shape)

    def gather(self, name: str, source: Tensor, index: Tensor) -> Tensor:
        """Copy source[index] into the memory called `name`, and return it."""
        return torch.index_select(source, 0, index, out=self(name, len(index), *source.shape[1:]))

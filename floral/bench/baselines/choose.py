"""Choose the PyTorch baseline of a task: FedAvg's local SGD steps in bare PyTorch, as fast as we can write them.

The benchmark compares the training time of floral with that of the baseline. There is a baseline for models of linear
layers and one for the model `cnn`. Their forward pass, backward pass and update are written by hand. Batches and inputs
are prepared before the time is measured. The baseline runs in one or several Python threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Protocol

from floral.bench.baselines.batches import Batches, samples
from floral.bench.baselines.convolutions import Convolutions
from floral.bench.baselines.dense import Dense
from floral.core.spec import Params, Refused
from floral.core.streams import Stream
from floral.engine.client_data import Rows
from floral.nn.layers import Linear
from floral.nn.model import Model

CHUNK_SIZES = (3, 5, 8, 15, 1 << 30)
"""Numbers of clients per batched product that `fastest` tries.

Few clients keep their weights in the cache; many clients cost less dispatch.
"""
TRIALS = 4
"""Timed rounds of each candidate."""


class Baseline(Protocol):
    """A PyTorch baseline: a callable that trains all clients for one round of FedAvg on one task."""

    def __call__(self, params: Params, batches: Batches) -> Params:
        """Train all clients from `params`, and return the unweighted mean of their models."""
        ...

    def __str__(self) -> str:
        """Describe in words how the baseline batches clients, and its numbers of workers and threads."""
        ...


def choose(kind: str, model: Model, rows: Rows, lr: float, batches: Batches, threads: int) -> Baseline:
    """Return the fastest PyTorch baseline for a model on these batches.

    The candidates differ in the number of threads and, for linear layers, in the number of clients that are computed as
    one batch. `kind` is the kind of the model, such as "cnn".

    Raises:
        Refused: there is no baseline for this model, this task or this device.
    """
    plain = all(isinstance(layer, Linear) for layer in model.layers.values())
    if kind != "cnn" and not (kind in ("linear", "mlp") and plain):
        raise Refused(
            f"there is no baseline for the model {kind}{' with batch norm' if kind == 'mlp' else ''};"
            " use a task with the model linear, cnn, or mlp without batch norm"
        )
    if rows.x.device.type != "cpu":
        raise Refused("the baseline runs on a CPU only, but the samples are on another device; move them to the CPU")
    data = samples(rows)
    workers = sorted({1, threads})
    if kind == "cnn":
        return fastest([Convolutions(data, lr, count) for count in workers], model, batches)
    chunks = sorted({min(chunk, -(-batches.clients // count)) for chunk in CHUNK_SIZES for count in workers})
    layers = tuple(model.layers)
    return fastest([Dense(data, layers, lr, count, chunk) for count in workers for chunk in chunks], model, batches)


def fastest(candidates: Sequence[Baseline], model: Model, batches: Batches) -> Baseline:
    """Return the candidate that trains a round in the shortest time.

    Each candidate makes one warm-up round. Then the candidates take turns in the timed rounds.
    """
    params = model.init(Stream(0, "floor"))
    best = [math.inf] * len(candidates)
    for trial in range(1 + TRIALS):
        for at, candidate in enumerate(candidates):
            began = time.perf_counter()
            candidate(params, batches)
            if trial > 0:
                best[at] = min(best[at], time.perf_counter() - began)
    return candidates[best.index(min(best))]

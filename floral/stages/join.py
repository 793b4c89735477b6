"""What a trained run gives to clients that join after it: unseen.parquet of its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from floral.config.run import Run
from floral.core.spec import Method
from floral.data.federation import Federation
from floral.engine.join import join, sizes_of
from floral.engine.rows import ClientData
from floral.engine.simulate import Simulation
from floral.engine.state import State

KINDS = ("seen_cluster", "new_concept")
UNSEEN = pl.Schema({
    "client": pl.Int32,
    "kind": pl.Enum(KINDS),
    "concept": pl.Int32,
    "n": pl.Int32,
    "test_rows": pl.Int32,
    "accuracy": pl.Float64,
    "loss": pl.Float64,
})  # fmt: skip


def unseen_table(
    run: Run,
    simulation: Simulation,
    state: State,
    data: Federation,
    assemble: Callable[[Federation], tuple[Method, ClientData]],
) -> pl.DataFrame | None:
    """One row per unseen client and number of samples n; None for a task without such clients.

    `assemble` gives the run's method as it is for those who join, and their data. An oracle is told the cluster of a
    client: those of a new concept have none to be told, and no row.
    """
    task, joining = run.task, data.unseen
    if task.unseen is None or joining is None:
        return None
    chosen = np.arange(len(joining.cluster))
    if run.variant.oracle:
        chosen = np.flatnonzero(joining.cluster < task.concepts)
        if not len(chosen):
            return pl.DataFrame(schema=UNSEEN)
    sizes = sizes_of(task.unseen.samples, joining.counts["train"])
    joining = _only(joining, chosen)
    method, tensors = assemble(joining)
    # where no client has rows like those of its cluster, its own are what it is tested on
    own_rows = simulation.settings.sampled_evaluation or task.skewed
    settings = replace(simulation.settings, sampled_evaluation=own_rows)
    scores = join(method, state, tensors, settings, sizes, task.unseen.epochs)
    concept = np.tile(joining.cluster, len(sizes))
    kind = np.where(concept < task.concepts, *KINDS)
    columns = {
        "client": task.clients + np.tile(chosen, len(sizes)),
        "kind": kind,
        "concept": concept,
        "n": np.repeat(sizes, len(chosen)),
        "test_rows": scores.rows,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
    }
    return pl.DataFrame({name: pl.Series(column) for name, column in columns.items()}).cast(UNSEEN)


def _only(joining: Federation, chosen: np.ndarray) -> Federation:
    """Some of the clients."""
    rows, counts = (
        {split: by_client[chosen] for split, by_client in some.items()} for some in (joining.rows, joining.counts)
    )
    return replace(joining, rows=rows, counts=counts, cluster=joining.cluster[chosen])

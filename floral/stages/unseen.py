"""Evaluate a trained run on clients that join after training, and make the table unseen.parquet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from floral.config.run import Run
from floral.core.spec import Method
from floral.data.federation import Federation
from floral.engine.client_data import ClientData
from floral.engine.simulate import Simulation
from floral.engine.state import State
from floral.engine.unseen import join, sizes_of

KINDS = ("seen_cluster", "new_concept")
UNSEEN = pl.Schema({
    "client": pl.Int32,
    "kind": pl.Enum(KINDS),
    "concept": pl.Int32,
    "n": pl.Int32,
    "test_rows": pl.Int32,
    "accuracy": pl.Float64,
    "loss": pl.Float64,
    "name": pl.String,
})  # fmt: skip


def unseen_table(
    run: Run,
    simulation: Simulation,
    state: State,
    data: Federation,
    assemble: Callable[[Federation], tuple[Method, ClientData]],
) -> pl.DataFrame | None:
    """Return the scores of the clients that join after training, or None for a task without such clients.

    A client joins with only n of its training samples, for several values of n. The table has one row for each client
    and each n. `assemble` is a function that builds the method and the tensors for the joining clients. An oracle (a
    variant that knows the true cluster of each client) has no rows for clients that belong to none of the clusters in
    training.
    """
    task, joining = run.task, data.unseen
    if task.unseen is None or joining is None:
        return None
    clients = np.arange(len(joining.cluster))
    if run.variant.oracle:
        clients = np.flatnonzero(joining.cluster < task.concepts)
        if not len(clients):
            return pl.DataFrame(schema=UNSEEN)
    sizes = sizes_of(task.unseen.samples, joining.counts["train"])
    joining = _select(joining, clients)
    method, tensors = assemble(joining)
    # clients of one cluster have different distributions in a skewed task, so each is tested on its own samples
    own_rows = simulation.settings.sampled_evaluation or task.skewed
    settings = replace(simulation.settings, sampled_evaluation=own_rows)
    scores = join(method, state, tensors, settings, sizes, task.unseen.epochs)
    concept = np.tile(joining.cluster, len(sizes))
    kind = np.where(concept < task.concepts, *KINDS)
    columns = {
        "client": task.clients + np.tile(clients, len(sizes)),
        "kind": kind,
        "concept": concept,
        "n": np.repeat(sizes, len(clients)),
        "test_rows": scores.rows,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "name": list(joining.client_names or [None] * len(clients)) * len(sizes),
    }
    return pl.DataFrame({name: pl.Series(column) for name, column in columns.items()}).cast(UNSEEN)


def _select(joining: Federation, clients: np.ndarray) -> Federation:
    """Return the data of only those joining clients whose indices are in `clients`."""
    rows, counts = (
        {split: by_client[clients] for split, by_client in by_split.items()}
        for by_split in (joining.rows, joining.counts)
    )
    names = joining.client_names and tuple(joining.client_names[client] for client in clients)
    return replace(joining, rows=rows, counts=counts, cluster=joining.cluster[clients], client_names=names)

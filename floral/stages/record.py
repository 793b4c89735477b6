"""Write the result files of a run: metrics, scores per client, routes, model, costs and the summary."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save

import floral
from floral.config.run import Run
from floral.config.schema.data import CustomData, Synthetic
from floral.data.federation import Federation
from floral.engine.evaluate import Scores
from floral.engine.simulate import Simulation
from floral.engine.state import State
from floral.io.files import atomic
from floral.runs import layout
from floral.runs.layout import METRICS, json_bytes, parquet_bytes
from floral.stages.progress import Progress
from floral.stages.provenance import git_commit, gpu, machine, peak_memory

ROUTES = {"round": pl.Int32, "client": pl.Int32, "cluster": pl.Int32, "route": pl.List(pl.Float64)}


def write_results(
    folder: Path,
    run: Run,
    simulation: Simulation,
    state: State,
    progress: Progress,
    data: Federation,
    joined: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """Write all result files of a finished or diverged run, and return the summary. summary.json is written last.

    `joined` is the table of the unseen clients, or None if there are none.
    """
    with progress.timed("evaluate"):
        local_scores = simulation.own_rows(state, simulation.data.test, np.arange(data.clients))
        scores = local_scores
        if headline(run, progress) == "population":
            scores, values = simulation.global_test(state)
            progress.record(values)
    evaluated = time.process_time()
    metrics = pl.DataFrame(progress.metrics, schema=METRICS, orient="row")
    routes = progress.routes[-1][1] if progress.routes else None
    atomic(folder / "metrics.parquet", parquet_bytes(metrics))
    atomic(folder / "clients.parquet", parquet_bytes(clients_table(scores, local_scores, simulation, routes, data)))
    if routes is not None:
        atomic(folder / "routes.parquet", parquet_bytes(routes_table(progress, data)))
    if joined is not None:
        atomic(folder / "unseen.parquet", parquet_bytes(joined))
    atomic(folder / "model.safetensors", model(state))
    progress.core_seconds["write"] += time.process_time() - evaluated
    atomic(folder / "costs.json", json_bytes(costs(simulation, state, progress)))
    summary = summarise(run, simulation, scores, metrics, progress, data)
    atomic(folder / "summary.json", json_bytes(summary))
    return summary


def headline(run: Run, progress: Progress) -> str:
    """Return which test samples give the score of a run: "population" or "test".

    With "population", every client is evaluated on all samples of the global test set, changed by the shift of the
    client's cluster. With "test", every client is evaluated only on its own test samples. The result is "test" in three
    cases: the run follows the evaluation of the published code, the label distribution differs between the clients of a
    cluster, or the run diverged.
    """
    local = run.fidelity["evaluation"] == "sampled" or run.task.skewed or progress.diverged_at is not None
    return "test" if local else "population"


def model(state: State) -> bytes:
    """Return the content of model.safetensors: the tensors after the last round.

    A tensor has the name <parameter group>/<name>. Private values (parameters of a single client) can be too large for
    memory. They are then in a second file in the same folder, and the key `private` in the header of model.safetensors
    names this file.
    """
    stored = {} if state.store is None else state.store.values
    tensors = {
        f"{group}/{name}": tensor.cpu().contiguous()
        for group, params in state.values.items()
        if group not in stored
        for name, tensor in params.items()
    }
    return save(tensors, metadata={"private": state.store.path.name} if state.store is not None else None)


def clients_table(
    scores: Scores, local_scores: Scores, simulation: Simulation, routes: list[list[float]] | None, data: Federation
) -> pl.DataFrame:
    """Return a table of the scores after the last round, with one row per client.

    `scores` are the scores on the test samples that `headline` chooses. `local_scores` are the scores on each client's
    own test samples. They give two columns: `own_rows` is the number of test samples (for text, the number of tokens),
    and `own_correct` is the number of correct predictions. Without names
    in the data, the column `name` is null.
    """
    regression = simulation.settings.loss == "mse"
    clients = len(scores.clients)
    columns = {
        "client": pl.Series(scores.clients, dtype=pl.Int32),
        "cluster": pl.Series(simulation.data.cluster.cpu().numpy(), dtype=pl.Int32),
        "train_rows": pl.Series(
            simulation.data.train.count[simulation.data.pool_of_client.cpu().numpy()], dtype=pl.Int32
        ),
        "test_rows": pl.Series(scores.rows, dtype=pl.Int32),
        "correct": pl.Series([None] * clients if regression else scores.correct, dtype=pl.Int64),
        "accuracy": pl.Series([None] * clients if regression else scores.accuracy, dtype=pl.Float64),
        "loss": pl.Series(scores.loss, dtype=pl.Float64),
        "own_rows": pl.Series(local_scores.tokens * local_scores.rows, dtype=pl.Int32),
        "own_correct": pl.Series([None] * clients if regression else local_scores.correct, dtype=pl.Int64),
        "route": pl.Series([None] * clients if routes is None else routes, dtype=pl.List(pl.Float64)),
        "name": pl.Series(data.client_names or [None] * clients, dtype=pl.String),
    }
    return pl.DataFrame(columns)


def routes_table(progress: Progress, data: Federation) -> pl.DataFrame:
    """Return a table of routes, with one row per client and evaluated round.

    The route of a client is a list with one number for each cluster: how much the client uses this cluster.
    """
    rows = [
        [round, client, int(data.cluster[client]), route]
        for round, by_client in progress.routes
        for client, route in enumerate(by_client)
    ]
    return pl.DataFrame(rows, schema=ROUTES, orient="row")


def costs(simulation: Simulation, state: State, progress: Progress) -> dict[str, Any]:
    """Return the content of costs.json, for example the number of parameters, the bytes per round and the seconds.

    It also says on which machine and with which versions the run was computed.
    """
    counted = simulation.costs(state)
    return {
        "parameters": counted.parameters(),
        "bytes_per_round": counted.bytes_per_client * simulation.cohort_size,
        "passes_per_sample": counted.passes_per_sample,
        "seconds": {**progress.seconds, "total": sum(progress.seconds.values())},
        "core_seconds": {**progress.core_seconds, "total": sum(progress.core_seconds.values())},
        "peak_memory_bytes": peak_memory(simulation.device, progress.peak_memory_bytes),
        "execution": {
            **asdict(simulation.execution),
            "device": simulation.device.type,
            "dtype": str(simulation.dtype).removeprefix("torch."),
        },
        "gpu": gpu(simulation.device),
        "resumptions": progress.resumptions,
        "machine": machine(),
        "versions": {"floral": floral.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "git_commit": git_commit(),
        "code": progress.code,
    }


def summarise(
    run: Run, simulation: Simulation, scores: Scores, metrics: pl.DataFrame, progress: Progress, data: Federation
) -> dict[str, Any]:
    """Return the content of summary.json: the scores after the last round, and the total costs of training."""
    last = metrics.filter(pl.col("round") == progress.round)
    value = {(split, metric): number for split, metric, number in last.select("split", "metric", "value").iter_rows()}
    diverged = progress.diverged_at is not None
    sampled = run.fidelity["evaluation"] == "sampled"
    split = headline(run, progress)
    regression = run.task.loss == "mse"
    return {
        "status": "diverged" if diverged else "done",
        **layout.identifying_columns(run),
        "round": progress.round,
        "test_accuracy": None if regression else scores.mean(scores.accuracy),
        "test_loss": scores.mean(scores.loss),
        **official_scores(simulation, scores, progress, sampled and not diverged),
        "own_test_accuracy": value.get(("test", "accuracy")),
        "validation_accuracy": value.get(("validation", "accuracy")),
        "validation_loss": value.get(("validation", "loss")),
        "worst_cluster_accuracy": value.get((split, "worst_cluster_accuracy")),
        "worst_decile_accuracy": value.get((split, "worst_decile_accuracy")),
        **further_scores(scores, value, split, data, run.task.data),
        "ari": value.get(("route", "ari")),
        "route_entropy": value.get(("route", "entropy")),
        "mismatch": value.get(("route", "mismatch")),
        "bytes": progress.bytes,
        "client_samples": progress.client_samples,
        "client_passes": progress.client_passes,
        "data_exact": data.exact,
        "partition_digest": data.partition_digest,
        "diverged_at": progress.diverged_at,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def further_scores(
    scores: Scores,
    value: dict[tuple[str, str], float],
    split: str,
    data: Federation,
    source: str | Synthetic | CustomData,
) -> dict[str, Any]:
    """Return the scores that only some runs have, such as top-5 accuracy, and the scores of each true cluster.

    The scores of a true cluster are the mean accuracy and the mean loss over the samples of its clients. The excess
    risk is the mean squared error minus the variance of the label noise. It is known only for synthetic data without
    `normalised: true`; otherwise, it is None.
    """
    # the labels of a synthetic global test set have no noise, so the mean squared error on it is the excess risk; with
    # `normalised`, a label depends on all samples of its client, but a model sees one sample at a time
    excess = split == "population" and isinstance(source, Synthetic) and not source.normalised
    regression, cluster = data.classes is None, data.cluster
    return {
        "classes": data.classes,
        "test_top5_accuracy": value.get((split, "top5_accuracy")),
        "worst_cluster_loss": value.get((split, "worst_cluster_loss")),
        "worst_decile_loss": value.get((split, "worst_decile_loss")),
        "excess_risk": scores.mean(scores.loss) if regression and excess else None,
        "cluster_accuracy": None if regression else scores.by_cluster(scores.accuracy, cluster),
        "cluster_loss": scores.by_cluster(scores.loss, cluster),
    }


def official_scores(simulation: Simulation, scores: Scores, progress: Progress, valid: bool) -> dict[str, float | None]:
    """Return the score that the published code reports, over all clients and over a random subset of clients.

    The published code divides the rounds into 51 bins, and the score is the mean over the rounds of the last bin. For a
    method without rounds, both scores are the score of its only evaluation. Both scores are None if `valid` is false,
    because the run diverged or does not follow the published evaluation.
    """
    names = ("official_score", "official_score_sampled")
    if not valid:
        return dict.fromkeys(names)
    if not progress.official:
        return dict.fromkeys(names, scores.mean(scores.loss if simulation.settings.loss == "mse" else scores.accuracy))
    return dict(zip(names, np.mean(progress.official, axis=0).tolist(), strict=True))

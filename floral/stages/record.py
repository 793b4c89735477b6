"""Write the results of a run: metrics, scores per client, routes, model, costs and the summary."""

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
    """Write all result files of a finished or diverged run, summary.json last, and return the summary.

    `joined` is the table of the unseen clients, if the task has any.
    """
    began = time.perf_counter()
    local_scores = simulation.own_rows(state, simulation.data.test, np.arange(data.clients))
    scores = local_scores
    if headline(run, progress) == "population":
        scores, values = simulation.global_test(state)
        spent = [progress.bytes, progress.client_samples, progress.client_passes]
        progress.metrics += [[progress.round, split, metric, value, *spent] for split, metric, value in values]
    progress.seconds["evaluate"] += time.perf_counter() - began
    metrics = pl.DataFrame(progress.metrics, schema=METRICS, orient="row")
    routes = progress.routes[-1][1] if progress.routes else None
    atomic(folder / "metrics.parquet", parquet_bytes(metrics))
    atomic(folder / "clients.parquet", parquet_bytes(clients_table(scores, local_scores, simulation, routes)))
    if routes is not None:
        atomic(folder / "routes.parquet", parquet_bytes(routes_table(progress, data)))
    if joined is not None:
        atomic(folder / "unseen.parquet", parquet_bytes(joined))
    atomic(folder / "model.safetensors", model(state))
    atomic(folder / "costs.json", json_bytes(costs(simulation, state, progress)))
    summary = summarise(run, simulation, scores, metrics, progress, data)
    atomic(folder / "summary.json", json_bytes(summary))
    return summary


def headline(run: Run, progress: Progress) -> str:
    """Return the split whose scores are the run's result: "population" or "test".

    "population", the global test set: every client is evaluated on the whole test set under its cluster's shift.
    "test": every client is evaluated on its own test samples. This is used where the published code does so, where a
    client's labels are distributed differently from its cluster's, and where the run diverged.
    """
    local = run.fidelity["evaluation"] == "sampled" or run.task.skewed or progress.diverged_at is not None
    return "test" if local else "population"


def model(state: State) -> bytes:
    """Content of model.safetensors: the final state under the names <group>/<name>.

    Groups in the store are left out. They are in the store's file beside it, which has the same format; the key
    `private` of the header names that file.
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
    scores: Scores, local_scores: Scores, simulation: Simulation, routes: list[list[float]] | None
) -> pl.DataFrame:
    """One row per client after the last round.

    `scores` are those of the headline split. `local_scores` count the hits on the client's own test samples (or
    tokens).
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
    }
    return pl.DataFrame(columns)


def routes_table(progress: Progress, data: Federation) -> pl.DataFrame:
    """One row per client and evaluation, with the client's route."""
    rows = [
        [round, client, int(data.cluster[client]), route]
        for round, by_client in progress.routes
        for client, route in enumerate(by_client)
    ]
    return pl.DataFrame(rows, schema=ROUTES, orient="row")


def costs(simulation: Simulation, state: State, progress: Progress) -> dict[str, Any]:
    """Content of costs.json: the method's counted costs, and time and memory measured on this machine."""
    counted = simulation.costs(state)
    return {
        "parameters": counted.parameters(),
        "bytes_per_round": counted.bytes_per_client * simulation.cohort_size,
        "passes_per_sample": counted.passes_per_sample,
        "seconds": {**progress.seconds, "total": sum(progress.seconds.values())},
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
    }


def summarise(
    run: Run, simulation: Simulation, scores: Scores, metrics: pl.DataFrame, progress: Progress, data: Federation
) -> dict[str, Any]:
    """Content of summary.json: the scores after the last round, and the total costs of training."""
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
    """Top-5 accuracy, the losses of the worst cluster and decile, the excess risk, and the mean of every true cluster.

    Excess risk is the mean squared error minus the variance of the label noise. The global test set of synthetic data
    has noiseless labels, so that the mean squared error on it is the excess risk. Labels that are normalised per client
    have none: such a label depends on the client's other samples, which no model sees.
    """
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
    """The score as the published code computes it, over all clients and over a sample of them; None if not `valid`.

    It is the mean over the last of 51 bins of rounds. A method without rounds has the score after its only evaluation.
    """
    names = ("official_score", "official_score_sampled")
    if not valid:
        return dict.fromkeys(names)
    if not progress.official:
        return dict.fromkeys(names, scores.mean(scores.loss if simulation.settings.loss == "mse" else scores.accuracy))
    return dict(zip(names, np.mean(progress.official, axis=0).tolist(), strict=True))

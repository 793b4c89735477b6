"""Run folders as `floral train` writes them, with results that can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from floral.config import catalogue
from floral.config.run import Run

CLIENTS, CLUSTERS, ROWS = 8, 2, 20
ACCURACY = {
    "fedavg": 0.60,
    "fedprox": 0.60,
    "local": 0.70,
    "ensemble": 0.80,
    "floral_1": 0.85,
    "floral_10": 0.75,
    "floral_1_optimal": 0.95,
    "constant": 0.10,
}


def make_run(task: str, variant: str, seed: int, fidelity: Any = "corrected", **change: Any) -> Run:
    values = {"clients": CLIENTS, "clusters": CLUSTERS, "rounds": 4, "eval_every": 2, **change}
    return Run(
        task=catalogue.task(task, values),
        variant=catalogue.variant(variant),
        seed=seed,
        fidelity=catalogue.fidelity(fidelity),
    )


def accuracy(run: Run) -> float:
    """ACCURACY + 0.01·seed. Over seeds 0, 1, 2 the mean is ACCURACY + 0.01 and the standard deviation is 0.01."""
    return ACCURACY[run.variant.name] + 0.01 * run.seed


def write_run(results: Path, run: Run, status: str = "done", names: list[str] | None = None) -> Path:
    """Write a run. `names`: the clients' names; None for a run of an earlier version, which does not keep them."""
    folder = results / run.folder
    folder.mkdir(parents=True)
    regression, routed = run.task.loss == "mse", "router" in run.variant.params
    value = accuracy(run)
    rows = []
    for round_ in (0, 2, 4):
        level = value if round_ == 4 else 0.1 * (1 + round_)
        metrics = {("train", "loss"): 2 - level, ("test", "loss"): 2.1 - level, ("validation", "loss"): 2.2 - level}
        if not regression:
            metrics[("test", "accuracy")] = level
        if routed:
            metrics[("route", "ari")] = round_ / 4
        rows += [
            (round_, split, metric, v, 1000 * round_, 10 * round_, 10.0 * round_)
            for (split, metric), v in metrics.items()
        ]
    types = [pl.Int32, pl.String, pl.String, pl.Float64, pl.Int64, pl.Int64, pl.Float64]
    columns = ("round", "split", "metric", "value", "bytes", "client_samples", "client_passes")
    schema = dict(zip(columns, types, strict=True))
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "metrics.parquet")
    write_clients(folder, value, regression, routed, names)
    if run.task.unseen and status == "done":
        write_unseen(folder, value, run.variant.oracle)
    (folder / "summary.json").write_text(json.dumps(summary(run, value, status, regression, routed)))
    (folder / "costs.json").write_text(json.dumps(COSTS))
    partition = {"folder": str(run.partition.folder), "digest": "fedcba9876543210"}
    run_yaml = {**run.model_dump(mode="json"), "hash8": run.hash8, "partition": partition}
    (folder / "run.yaml").write_text(yaml.safe_dump(run_yaml))
    (folder / "log.txt").write_text("first line\nlast line\n")
    return folder


def write_clients(folder: Path, value: float, regression: bool, routed: bool, names: list[str] | None) -> None:
    """Write clients.parquet. Clients alternate between clusters; the learned clusters are the true ones, swapped."""
    clients = list(range(CLIENTS))
    routes = [[0.2, 0.8] if client % CLUSTERS == 0 else [0.9, 0.1] for client in clients]
    none = [None] * CLIENTS
    pl.DataFrame({
        "client": pl.Series(clients, dtype=pl.Int32),
        "cluster": pl.Series([client % CLUSTERS for client in clients], dtype=pl.Int32),
        "train_rows": pl.Series([50] * CLIENTS, dtype=pl.Int32),
        "test_rows": pl.Series([ROWS] * CLIENTS, dtype=pl.Int32),
        "correct": pl.Series(none if regression else [round(ROWS * value)] * CLIENTS, dtype=pl.Int64),
        "accuracy": pl.Series(none if regression else [value] * CLIENTS, dtype=pl.Float64),
        "loss": pl.Series([2.1 - value] * CLIENTS, dtype=pl.Float64),
        "own_rows": pl.Series([ROWS] * CLIENTS, dtype=pl.Int32),
        "own_correct": pl.Series(none if regression else hits(value), dtype=pl.Int64),
        "route": pl.Series(routes if routed else none, dtype=pl.List(pl.Float64)),
        **({} if names is None else {"name": pl.Series(names, dtype=pl.String)}),
    }).write_parquet(folder / "clients.parquet")  # fmt: skip


def hits(value: float) -> list[int]:
    """Correct samples of each client, of 20 test samples: h = round(20 · value).

    Clients of true cluster 0 have h - 4, and client 0 has h - 6. No number is below 0.
    """
    return [max(0, round(ROWS * value) - 4 * (k % CLUSTERS == 0) - 2 * (k == 0)) for k in range(CLIENTS)]


def summary(run: Run, value: float, status: str, regression: bool, routed: bool) -> dict[str, Any]:
    done, official = status == "done", run.fidelity.name == "official"
    return {
        "status": status, "task": run.task.name, "variant": run.variant.name, "title": run.variant.title,
        "method": run.variant.method, "family": run.variant.family, "fidelity": run.fidelity.name,
        "optimal_router": run.variant.optimal_router, "oracle": run.variant.oracle, "seed": run.seed,
        "hash8": run.hash8, "round": 4, "test_accuracy": None if regression or not done else value,
        "test_loss": 2.1 - value if done else None, "official_score": value - 0.02 if official and done else None,
        "official_score_sampled": value - 0.03 if official and done else None,
        "own_test_accuracy": None if regression else value, "validation_accuracy": None, "validation_loss": 1.0,
        "worst_cluster_accuracy": None, "worst_decile_accuracy": None, "ari": 1.0 if routed else None,
        "route_entropy": None, "mismatch": None, "bytes": 4000, "client_samples": 40, "client_passes": 40.0,
        "data_exact": True, "partition_digest": f"{run.partition_seed:064d}", "diverged_at": None if done else 3,
        "finished_at": f"2026-01-01T00:00:0{run.seed}+00:00",
    }  # fmt: skip


def write_unseen(folder: Path, value: float, oracle: bool) -> None:
    """Write unseen.parquet: two clients of a seen cluster, and one of a new concept.

    The second client has an accuracy lower by 0.1 and twice the samples. The client of the new concept has half the
    accuracy.
    """
    kinds = ["seen_cluster", "seen_cluster", "new_concept"][: 2 if oracle else 3]
    rows = [
        {"client": CLIENTS + at, "kind": kind, "concept": 2 * (at // 2), "n": n, "test_rows": ROWS * (1 + at % 2),
         "accuracy": (value / 2 if at == 2 else value - 0.1 * at) * (n > 0), "loss": 2.0}
        for n in (0, 1, 10)
        for at, kind in enumerate(kinds)
    ]  # fmt: skip
    types = {"client": pl.Int32, "kind": pl.Enum(["seen_cluster", "new_concept"]), "n": pl.Int32, "test_rows": pl.Int32}
    pl.DataFrame(rows).cast(types).write_parquet(folder / "unseen.parquet")


COSTS = {
    "parameters": {
        "base": 4810, "trainable_per_client": 4810, "served": 4810, "sent_down": 4810, "sent_up": 4810,
        "kept_private": 0, "server": 4810,
    },
    "bytes_per_round": 1000, "passes_per_sample": 1.0,
    "seconds": {"setup": 0.1, "train": 1.0, "evaluate": 0.2, "total": 1.3}, "peak_memory_bytes": 400_000_000,
    "execution": {"backend": "vmap", "chunk": 4, "threads": 1, "device": "cpu", "dtype": "float32", "reason": "x"},
    "resumptions": 0, "machine": {"python": "3.11", "torch": "2", "platform": "Linux", "cpu": "a CPU", "cores": 2},
    "versions": {"floral": "0.1.0", "torch": "2", "numpy": "2"}, "git_commit": None, "code": None,
}  # fmt: skip

FAILURE = {
    "reason": "out of memory", "exception": "MemoryError: <none left>", "traceback": "Traceback\n  here\n",
    "hint": "use --backend loop", "time": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def write(results: Path) -> Callable[..., Path]:
    """write(run, status) writes a run folder under the fixture `results`, and returns it."""
    return lambda run, status="done": write_run(results, run, status)


def write_suite(results: Path) -> list[Run]:
    """15 runs of two tasks: 12 done, one diverged, one failed, one missing."""
    runs = [make_run("digits_rotate", v, seed) for v in ("fedavg", "ensemble", "floral_1") for seed in (0, 1, 2)]
    runs += [make_run("digits_rotate", v, 0) for v in ("floral_1_optimal", "constant")]
    runs += [make_run("synthetic_linear", "fedavg", seed) for seed in (0, 1)]
    runs += [make_run("synthetic_linear", "floral_1", seed) for seed in (0, 1)]
    special = {("fedavg", 2): "diverged", ("ensemble", 1): "failed", ("ensemble", 2): "missing"}
    for run in runs:
        state = special.get((run.variant.name, run.seed), "done")
        if state == "failed":
            (results / run.folder).mkdir(parents=True)
            (results / run.folder / "failure.json").write_text(json.dumps(FAILURE))
        elif state != "missing":
            write_run(results, run, state)
    return runs


@pytest.fixture
def suite_runs(results: Path) -> list[Run]:
    """The runs of `write_suite`, written under the fixture `results`."""
    return write_suite(results)

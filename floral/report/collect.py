"""Read the run folders of a suite into polars frames."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.report import compared
from floral.report.compared import CHANGES, Configuration, MethodRow
from floral.runs.layout import identifying_columns
from floral.runs.reference import origin
from floral.runs.state import failure, is_finished, running

CURVES = ("test/accuracy", "test/loss", "validation/loss", "route/ari", "route/entropy", "route/mismatch")
"""The metrics that the report reads at every evaluation."""

IDENTITY = (
    "suite", "task", "variant", "title", "method", "family", "fidelity", "optimal_router", "oracle", "seed", "status",
    "round", "test_accuracy", "test_loss", "official_score",
)  # fmt: skip
"""The first columns of summary.parquet."""

METRICS = {
    "official_score_sampled": pl.Float64, "own_test_accuracy": pl.Float64, "validation_accuracy": pl.Float64,
    "validation_loss": pl.Float64, "worst_cluster_accuracy": pl.Float64, "worst_decile_accuracy": pl.Float64,
    "ari": pl.Float64, "route_entropy": pl.Float64, "mismatch": pl.Float64, "bytes": pl.Int64,
    "client_samples": pl.Int64, "client_passes": pl.Float64, "diverged_at": pl.Int64, "data_exact": pl.Boolean,
    "partition_digest": pl.String, "finished_at": pl.String,
}  # fmt: skip
"""Columns of summary.parquet that every finished run has in its summary.json."""

OPTIONAL_METRICS: dict[str, Any] = {
    "classes": pl.Int64, "test_top5_accuracy": pl.Float64, "worst_cluster_loss": pl.Float64,
    "worst_decile_loss": pl.Float64, "excess_risk": pl.Float64, "cluster_accuracy": pl.List(pl.Float64),
    "cluster_loss": pl.List(pl.Float64), "reference": pl.String,
}  # fmt: skip
"""Columns of summary.parquet that are null for runs of earlier versions."""

CLIENTS = ("client", "cluster", "train_rows", "test_rows", "accuracy", "loss", "own_rows", "own_correct", "route")
"""The columns of clients.parquet that the report reads, besides `name`, which runs of earlier versions do not have."""

FOLLOWED = "floral_1"
"""The variant whose clients' routes are plotted over rounds."""


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run without a result, and the reason why it has none."""

    run: Run
    status: Literal["failed", "missing"]
    reason: str
    exception: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """The results of a suite, as frames. In each frame, the columns configuration, method_id and seed identify a run.

    A configuration is a task with its settings. Finished runs have the status `diverged` or `done` (not diverged).

    summary: one row per run, finished or not.
    curves: one row per finished run, metric and evaluated round.
    clients: one row per finished run and client, at the last round.
    costs: one row per finished run.
    unseen: mean accuracy and loss of clients that join after training. It has one row per done run, kind of client and
    number n of labelled samples.
    """

    suite: str
    configurations: tuple[Configuration, ...]
    methods: tuple[MethodRow, ...]
    summary: pl.DataFrame
    curves: pl.DataFrame
    clients: pl.DataFrame
    costs: pl.DataFrame
    unseen: pl.DataFrame
    unfinished: tuple[Unfinished, ...]
    routes: pl.DataFrame = field(default_factory=pl.DataFrame)
    """Routes at every recorded round, for the first done seed of FOLLOWED: round, client, cluster (true), route."""

    def values(self, configuration: Configuration, column: str) -> dict[str, dict[int, float]]:
        """Return a column of the frame `summary` as method → seed → value, for runs that did not diverge."""
        rows = self.summary.filter(
            (pl.col("configuration") == configuration.id) & (pl.col("status") == "done") & pl.col(column).is_not_null()
        )
        values: dict[str, dict[int, float]] = {}
        for method, seed, value in rows.select("method_id", "seed", column).iter_rows():
            values.setdefault(method, {})[seed] = value
        return values

    def methods_on(self, configuration: Configuration) -> list[MethodRow]:
        """Return the methods that the suite runs on this task with these settings, finished or not."""
        ids = set(self.summary.filter(pl.col("configuration") == configuration.id)["method_id"])
        return [method for method in self.methods if method.id in ids]


def collect(suite: str, runs: Iterable[Run], results: Path) -> Collected:
    """Read the run folders of a suite from the folder `results`.

    Raises:
        ConfigError: a file of a finished run cannot be read, or two runs that the report compares have split the data
            differently over clients. The message names the folders of these runs.
    """
    runs = list(runs)
    used: dict[Path, tuple[Path, str]] = {}  # folder of a partition → the first run that used it, and its digest there
    configurations, methods, changes = compared.configurations(runs), compared.methods(runs), compared.change_columns()
    summary, curves, clients, costs, unseen, unfinished, routes = [], [], [], [], [], [], {}
    for run in runs:
        keys = {
            "configuration": configurations[compared.configuration_key(run)].id,
            "method_id": methods[compared.method_key(run)].id,
            "seed": run.seed,
        }
        folder = results / run.folder
        row = {"suite": suite, **identifying_columns(run), **keys, **changes(run), "tuned": run.own_rates is not None}
        if not is_finished(folder):
            unfinished.append(_unfinished(run, folder))
            summary.append({**row, "status": unfinished[-1].status})
            continue
        try:
            result, cost = json_file(folder / "summary.json"), json_file(folder / "costs.json")
            curves.append(_curves(folder / "metrics.parquet", keys))
            clients.append(_clients(folder / "clients.parquet", keys))
            done = result["status"] == "done"
            if run.task.unseen and done:
                unseen.append(_unseen(folder / "unseen.parquet", keys))
            key = keys["configuration"], keys["method_id"]
            if done and run.variant.name == FOLLOWED and (folder / "routes.parquet").exists() and key not in routes:
                routes[key] = pl.read_parquet(folder / "routes.parquet").with_columns(**_literals(keys))
            summary.append({**row, **finished_columns(folder, result, cost)})
        except UNREADABLE as error:
            raise unreadable(folder, error) from None
        _check_partition(used, run.partition.folder, folder, result["partition_digest"])
        costs.append({**keys, "status": result["status"], **{key: cost[key] for key in cost if key != "code"}})
    return Collected(
        suite=suite,
        configurations=tuple(configurations.values()),
        methods=tuple(methods.values()),
        summary=summary_frame(summary),
        curves=pl.concat(curves) if curves else pl.DataFrame(),
        clients=pl.concat(clients) if clients else pl.DataFrame(),
        costs=pl.DataFrame(costs, infer_schema_length=None, strict=False),
        unseen=pl.concat(unseen) if unseen else pl.DataFrame(),
        unfinished=tuple(unfinished),
        routes=pl.concat(routes.values()) if routes else pl.DataFrame(),
    )


# -------------------------------------------------------------------------------------------- one run


UNREADABLE = (OSError, ValueError, KeyError, pl.exceptions.PolarsError)
"""Errors that reading the files of a finished run can raise, if one is missing or damaged."""


def unreadable(folder: Path, error: Exception) -> ConfigError:
    """Return the error for a finished run whose files cannot be read."""
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ConfigError(f"folder {folder}: the result cannot be read ({reason}); delete this folder and run it again")


def finished_columns(folder: Path, result: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of summary.parquet that only a finished run has, from its summary.json and costs.json."""
    return {**_metrics(result), "reference": origin(folder), **_cost_columns(costs)}


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    required = {name: result[name] for name in ("status", "round", *IDENTITY[-3:], *METRICS)}
    return required | {name: result.get(name) for name in OPTIONAL_METRICS}


def _check_partition(used: dict[Path, tuple[Path, str]], partition: Path, folder: Path, digest: str | None) -> None:
    """Raise ConfigError if two runs with the same partition folder have used different samples.

    used: folder of a partition → run folder and digest of samples of the first run that used it. digest: the digest of
    this run's samples, or None for a run without data.
    """
    if digest is None:
        return
    first, expected = used.setdefault(partition, (folder, digest))
    if digest != expected:
        raise ConfigError(
            f"folder {folder}: this run used another partition ({digest[:8]}) than {first} ({expected[:8]}), so "
            "the two cannot be compared; delete both folders and run the suite again"
        )


def _unfinished(run: Run, folder: Path) -> Unfinished:
    if record := failure(folder):
        texts = {key: record[key] or "" for key in ("reason", "exception", "hint")}
        return Unfinished(run=run, status="failed", **texts)
    return Unfinished(run=run, status="missing", reason="running now" if running(folder) else "not run yet")


def _cost_columns(costs: Mapping[str, Any]) -> dict[str, Any]:
    seconds = {f"seconds_{part}": value for part, value in costs["seconds"].items()}
    return {**seconds, "peak_memory_bytes": costs["peak_memory_bytes"], "bytes_per_round": costs["bytes_per_round"]}


def _curves(path: Path, keys: Mapping[str, Any]) -> pl.DataFrame:
    name = pl.concat_str("split", "metric", separator="/")
    return (
        pl.read_parquet(path)
        .select(name.alias("metric"), "round", "bytes", "client_passes", "value")
        .filter(pl.col("metric").is_in(CURVES))
        .with_columns(**_literals(keys))
    )


def _clients(path: Path, keys: Mapping[str, Any]) -> pl.DataFrame:
    clients = pl.read_parquet(path)
    name = pl.col("name") if "name" in clients.columns else pl.lit(None, pl.String)
    return clients.select(*CLIENTS, name=name, **_literals(keys))


def _unseen(path: Path, keys: Mapping[str, Any]) -> pl.DataFrame:
    """Return the mean accuracy and loss of a run's unseen clients, which join after training.

    There is one row for each kind of client and number n of labelled samples. In the means, clients are weighted by
    their numbers of test samples.
    """
    means = [(pl.col(name) * pl.col("test_rows")).sum() / pl.col("test_rows").sum() for name in ("accuracy", "loss")]
    by_kind = pl.read_parquet(path).group_by("kind", "n", maintain_order=True)
    return by_kind.agg(*means).cast({"kind": pl.String}).with_columns(**_literals(keys))


def _literals(keys: Mapping[str, Any]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in keys.items()}


def summary_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return the rows as a frame with fixed columns and types, so that frames of several suites can be concatenated."""
    seconds = ("seconds_setup", "seconds_train", "seconds_evaluate", "seconds_total")
    types: dict[str, Any] = dict.fromkeys(IDENTITY, pl.String)
    types |= dict.fromkeys(("test_accuracy", "test_loss", "official_score", *seconds), pl.Float64) | METRICS
    types |= dict.fromkeys(("seed", "round", "bytes_per_round", "peak_memory_bytes"), pl.Int64)
    types |= dict.fromkeys(("optimal_router", "oracle", "tuned"), pl.Boolean)
    types |= dict.fromkeys(("hash8", "configuration", "method_id", *CHANGES), pl.String) | OPTIONAL_METRICS
    return pl.DataFrame(rows, schema=types, strict=False)


def json_file(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value

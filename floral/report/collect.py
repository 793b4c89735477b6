"""The folders of a suite's runs → polars frames and the names that the report gives them. Reads, never writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.method import Variant
from floral.config.schema.task import Task
from floral.data.samples import evaluated_on_training
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

LATER: dict[str, Any] = {
    "classes": pl.Int64, "test_top5_accuracy": pl.Float64, "worst_cluster_loss": pl.Float64,
    "worst_decile_loss": pl.Float64, "excess_risk": pl.Float64, "cluster_accuracy": pl.List(pl.Float64),
    "cluster_loss": pl.List(pl.Float64), "reference": pl.String,
}  # fmt: skip
"""Columns that runs of earlier versions lack: null there."""

CHANGES = ("task_changes", "method_changes", "switches")
"""In what a run departs from its task's file, its variant (by tuning, say) and its fidelity: JSON, {} for nothing."""

CLIENTS = ("client", "cluster", "train_rows", "test_rows", "accuracy", "loss", "own_rows", "own_correct", "route")
"""The columns of clients.parquet that the report reads."""

FOLLOWED = "floral_1"
"""The variant whose clients' routes are followed over rounds."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What methods are compared on: a task with all its values, under one fidelity. One column of the main table."""

    id: str
    title: str
    task: Task
    fidelity: str
    diverged_runs: Literal["dropped", "reported"]
    on_training: bool
    """Whether clients are evaluated on rows that they trained on, as the published code of some tasks does."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """The switches that the suite turned away from this fidelity."""

    @property
    def metric(self) -> str:
        """`accuracy` (higher is better), or `loss` for regression (lower is better)."""
        return "loss" if self.task.loss == "mse" else "accuracy"


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """What is compared: a variant with all its values. One row of the main table, one colour everywhere."""

    id: str
    title: str
    variant: Variant
    tuned: bool = False
    """Whether its learning rates and hyper-parameters are those that tuning chose, for each task its own."""


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run without a result, and why."""

    run: Run
    status: Literal["failed", "missing"]
    reason: str
    exception: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """A suite's results. Frames share the keys `configuration`, `method` and `seed`.

    summary: one row per run, finished or not. curves: one row per run, metric and evaluated round.
    clients: one row per finished run and client (last round). costs: one row per finished run, with its status.
    unseen: the clients of one `kind` that joined a done run with `n` samples each, their mean accuracy and loss.
    A diverged run is finished.
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
    """Every recorded round and client of the first done seed of FOLLOWED: round, client, cluster (true), route."""

    def values(self, configuration: Configuration, column: str) -> dict[str, dict[int, float]]:
        """contender → seed → value of `column` in the summary, of the runs that are done and have one."""
        rows = self.summary.filter(
            (pl.col("setting") == configuration.id) & (pl.col("status") == "done") & pl.col(column).is_not_null()
        )
        found: dict[str, dict[int, float]] = {}
        for method, seed, value in rows.select("contender", "seed", column).iter_rows():
            found.setdefault(method, {})[seed] = value
        return found

    def present(self, configuration: Configuration) -> list[MethodRow]:
        """The contenders that the suite runs in this setting, finished or not."""
        ids = set(self.summary.filter(pl.col("setting") == configuration.id)["contender"])
        return [method for method in self.methods if method.id in ids]


def collect(suite: str, runs: Iterable[Run], results: Path) -> Collected:
    """Read every run's folder below `results`.

    Raises:
        ConfigError: a finished run's file is unreadable (names it, and how to run that run again).
    """
    runs = list(runs)
    configurations, methods, changed = _configurations(runs), _method_rows(runs), _changes()
    summary, curves, clients, costs, unseen, unfinished, routes = [], [], [], [], [], [], {}
    for run in runs:
        keys = {
            "setting": configurations[_configuration_key(run)].id,
            "contender": methods[_method_key(run)].id,
            "seed": run.seed,
        }
        folder = results / run.folder
        row = {"suite": suite, **_identity(run), **keys, **changed(run), "hash8": folder.name.rpartition("-")[2]}
        if not is_finished(folder):
            unfinished.append(_unfinished(run, folder))
            summary.append({**row, "status": unfinished[-1].status})
            continue
        try:
            found, spent = _json(folder / "summary.json"), _json(folder / "costs.json")
            curves.append(_curves(folder / "metrics.parquet", keys))
            clients.append(_clients(folder / "clients.parquet", keys))
            if run.task.unseen and found["status"] == "done":
                unseen.append(_unseen(folder / "unseen.parquet", keys))
            followed = (
                run.variant.name == FOLLOWED and found["status"] == "done" and (folder / "routes.parquet").exists()
            )
            if followed and (keys["setting"], keys["contender"]) not in routes:
                own = pl.read_parquet(folder / "routes.parquet").with_columns(**_literals(keys))
                routes[keys["setting"], keys["contender"]] = own
            measured = {key: found[key] for key in ("status", "round", *IDENTITY[-3:], *METRICS)}
            measured |= {key: found.get(key) for key in LATER} | {"reference": origin(folder)}
            summary.append({**row, **measured, **_spent(spent)})
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
            told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{folder}: unreadable result ({told}); delete this folder and run it again") from None
        costs.append({**keys, "status": found["status"], **spent})
    return Collected(
        suite=suite,
        configurations=tuple(configurations.values()),
        methods=tuple(methods.values()),
        summary=_summary_frame(summary),
        curves=pl.concat(curves) if curves else pl.DataFrame(),
        clients=pl.concat(clients) if clients else pl.DataFrame(),
        costs=pl.DataFrame(costs, infer_schema_length=None, strict=False),
        unseen=pl.concat(unseen) if unseen else pl.DataFrame(),
        unfinished=tuple(unfinished),
        routes=pl.concat(routes.values()) if routes else pl.DataFrame(),
    )


# -------------------------------------------------------------------------------------------- one run


def _identity(run: Run) -> dict[str, Any]:
    variant = run.variant
    return {
        "task": run.task.name, "variant": variant.name, "title": variant.title, "method": variant.method,
        "family": variant.family, "fidelity": run.fidelity.name, "optimal_router": variant.optimal_router,
        "oracle": variant.oracle, "tuned": run.own_rates is not None,
    }  # fmt: skip


def _changes() -> Callable[[Run], dict[str, str]]:
    """run → the columns of CHANGES."""
    told: dict[Hashable, dict[str, str]] = {}

    def changes(run: Run) -> dict[str, str]:
        key = (
            _configuration_key(run),
            run.variant.name,
            json.dumps(dict(run.variant.params), sort_keys=True),
            run.own_rates,
        )
        if key not in told:
            usual = catalogue.task(run.task.name).model_dump(), catalogue.variant(run.variant.name).params
            rates = {} if run.own_rates is None else {"rates": run.own_rates.model_dump()}
            now = run.task.model_dump(), {**run.variant.params, **rates}
            found = [_differing(one, other) for one, other in zip(now, usual, strict=True)]
            told[key] = {
                name: json.dumps(one, sort_keys=True, default=str)
                for name, one in zip(CHANGES, (*found, _turned(run)), strict=True)
            }
        return told[key]

    return changes


def _differing(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The values, flat, that are others than usual; those that are gone are null."""
    now, before = _flat(values), _flat(usual)
    return {name: now.get(name) for name in {**before, **now} if now.get(name) != before.get(name)}


def _unfinished(run: Run, folder: Path) -> Unfinished:
    if found := failure(folder):
        told = {key: found[key] or "" for key in ("reason", "exception", "hint")}
        return Unfinished(run=run, status="failed", **told)
    return Unfinished(run=run, status="missing", reason="running now" if running(folder) else "not run yet")


def _spent(costs: Mapping[str, Any]) -> dict[str, Any]:
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
    return pl.read_parquet(path).select(*CLIENTS, **_literals(keys))


def _unseen(path: Path, keys: Mapping[str, Any]) -> pl.DataFrame:
    """Means over the clients by their test rows, as of all others."""
    means = [(pl.col(name) * pl.col("test_rows")).sum() / pl.col("test_rows").sum() for name in ("accuracy", "loss")]
    by = pl.read_parquet(path).group_by("kind", "n", maintain_order=True)
    return by.agg(*means).cast({"kind": pl.String}).with_columns(**_literals(keys))


def _literals(keys: Mapping[str, Any]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in keys.items()}


def _summary_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Fixed columns and types, so that suites stack whatever has finished in them."""
    seconds = ("seconds_setup", "seconds_train", "seconds_evaluate", "seconds_total")
    types: dict[str, Any] = dict.fromkeys(IDENTITY, pl.String)
    types |= dict.fromkeys(("test_accuracy", "test_loss", "official_score", *seconds), pl.Float64) | METRICS
    types |= dict.fromkeys(("seed", "round", "bytes_per_round", "peak_memory_bytes"), pl.Int64)
    types |= dict.fromkeys(("optimal_router", "oracle", "tuned"), pl.Boolean)
    types |= dict.fromkeys(("hash8", "setting", "contender", *CHANGES), pl.String) | LATER
    return pl.DataFrame(rows, schema=types, strict=False)


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


# -------------------------------------------------------------------- names of what differs in a suite


def _configuration_key(run: Run) -> Hashable:
    return run.task.model_dump_json(), run.fidelity.model_dump_json()


def _method_key(run: Run) -> Hashable:
    """Tuned values differ from task to task and are one contender all the same."""
    tuned = run.own_rates is not None
    return run.variant.name, "tuned" if tuned else json.dumps(dict(run.variant.params), sort_keys=True)


def _configurations(runs: list[Run]) -> dict[Hashable, Configuration]:
    firsts: dict[Hashable, Run] = {}
    for run in runs:
        firsts.setdefault(_configuration_key(run), run)
    facts = {key: _departures(run) for key, run in firsts.items()}
    ids = _distinct(facts, {key: run.task.name for key, run in firsts.items()})
    configurations = {}
    for key, run in firsts.items():
        suffix, differs = ids[key]
        title = f"{run.task.title}, {differs}" if differs else run.task.title
        configurations[key] = Configuration(
            id=run.task.name + suffix, title=title, task=run.task, fidelity=run.fidelity.name,
            diverged_runs=run.fidelity["diverged_runs"], on_training=evaluated_on_training(run),
            switches=_turned(run),
        )  # fmt: skip
    return configurations


def _departures(run: Run) -> dict[str, Any]:
    """The fidelity by name, the switches that the suite turned away from it, and what it changed in the task."""
    now, usual = (task.model_dump(exclude={"title"}) for task in (run.task, catalogue.task(run.task.name)))
    return {"fidelity": run.fidelity.name, **_turned(run), **_differing(now, usual)}


def _turned(run: Run) -> dict[str, Any]:
    usual = catalogue.fidelity(run.fidelity.name).switches
    return {name: value for name, value in run.fidelity.switches.items() if usual.get(name) != value}


def _method_rows(runs: list[Run]) -> dict[Hashable, MethodRow]:
    """A tuned variant is named so only where the suite also runs it untuned."""
    firsts: dict[Hashable, Run] = {}
    for run in runs:
        firsts.setdefault(_method_key(run), run)
    tuned = {key for key, run in firsts.items() if run.own_rates is not None}
    untuned = {run.variant.name for key, run in firsts.items() if key not in tuned}
    beside = {key for key in tuned if firsts[key].variant.name in untuned}
    names = {key: run.variant.name + ("-tuned" if key in beside else "") for key, run in firsts.items()}
    usual = {key: catalogue.variant(run.variant.name).params for key, run in firsts.items()}
    facts = {key: {} if key in tuned else _differing(firsts[key].variant.params, usual[key]) for key in firsts}
    ids = _distinct(facts, names)
    methods = {}
    for key, run in firsts.items():
        suffix, differs = ids[key]
        title = ", ".join(filter(None, (run.variant.title, "tuned" if key in beside else "", differs)))
        methods[key] = MethodRow(id=names[key] + suffix, title=title, variant=run.variant, tuned=key in tuned)
    return methods


def _distinct(
    facts: Mapping[Hashable, Mapping[str, Any]], names: Mapping[Hashable, str]
) -> dict[Hashable, tuple[str, str]]:
    """For each key, a suffix that makes its name unique and those of its facts that its namesakes do not all share."""
    told = {}
    for name in dict.fromkeys(names.values()):
        keys = [key for key in facts if names[key] == name]
        shared = set.intersection(*({str(item) for item in facts[key].items()} for key in keys))
        for position, key in enumerate(keys):
            differs = ", ".join(
                f"{path} {value}" for path, value in facts[key].items() if str((path, value)) not in shared
            )
            told[key] = (f"-{position + 1}" if position else "", differs)
    return told


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat

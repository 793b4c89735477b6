"""The folders of a suite's runs → polars frames and the names that the report gives them. Reads, never writes."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from floral.config import ConfigError, Run, Task, Variant, fidelity

CURVES = ("test/accuracy", "test/loss", "route/ari", "test/worst_cluster_accuracy", "test/worst_decile_accuracy")
"""The metrics that the report shows over time, or at the last round on the clients' own test rows."""

IDENTITY = (
    "suite", "task", "variant", "title", "method", "family", "fidelity", "optimal_router", "oracle", "seed", "status",
    "round", "test_accuracy", "test_loss", "official_score",
)  # fmt: skip
"""The first columns of summary.parquet."""

METRICS = {
    "own_test_accuracy": pl.Float64, "validation_accuracy": pl.Float64, "validation_loss": pl.Float64,
    "worst_cluster_accuracy": pl.Float64, "worst_decile_accuracy": pl.Float64, "ari": pl.Float64,
    "route_entropy": pl.Float64, "mismatch": pl.Float64, "bytes": pl.Int64, "client_samples": pl.Int64,
    "client_passes": pl.Float64, "diverged_at": pl.Int64, "data_exact": pl.Boolean, "partition_digest": pl.String,
    "finished_at": pl.String,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What methods are compared on: a task with all its values, under one fidelity. One column of the main table."""

    id: str
    title: str
    task: Task
    fidelity: str

    @property
    def metric(self) -> str:
        """`accuracy` (higher is better), or `loss` for regression (lower is better)."""
        return "loss" if self.task.loss == "mse" else "accuracy"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What is compared: a variant with all its values. One row of the main table, one colour everywhere."""

    id: str
    title: str
    variant: Variant


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run without a result, and why."""

    run: Run
    status: str
    reason: str
    exception: str
    hint: str
    round: int | None


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A suite's results. Frames share the keys `setting`, `contender` and `seed`.

    summary: one row per run, finished or not. curves: one row per run, metric and evaluated round.
    clients: one row per run and client (last round). costs: one row per finished run. own_rows: one row per setting,
    seed and client that has test rows of its own: client, cluster, rows (from the partition; empty for regression).
    """

    suite: str
    settings: tuple[Setting, ...]
    contenders: tuple[Contender, ...]
    summary: pl.DataFrame
    curves: pl.DataFrame
    clients: pl.DataFrame
    costs: pl.DataFrame
    own_rows: pl.DataFrame
    unfinished: tuple[Unfinished, ...]

    def values(self, setting: Setting, column: str) -> dict[str, dict[int, float]]:
        """contender → seed → value of `column` in the summary, of the runs that are done and have one."""
        rows = self.summary.filter(
            (pl.col("setting") == setting.id) & (pl.col("status") == "done") & pl.col(column).is_not_null()
        )
        found: dict[str, dict[int, float]] = {}
        for contender, seed, value in rows.select("contender", "seed", column).iter_rows():
            found.setdefault(contender, {})[seed] = value
        return found

    def present(self, setting: Setting) -> list[Contender]:
        """The contenders that the suite runs in this setting, finished or not."""
        ids = set(self.summary.filter(pl.col("setting") == setting.id)["contender"])
        return [contender for contender in self.contenders if contender.id in ids]


def collect(suite: str, runs: Iterable[Run], results: Path) -> Collected:
    """Read every run's folder below `results`.

    Raises:
        ConfigError: a finished run's file is unreadable (names it, and how to run that run again).
    """
    runs = list(runs)
    settings, contenders = _settings(runs), _contenders(runs)
    summary, curves, clients, costs, unfinished = [], [], [], [], []
    for run in runs:
        keys = {
            "setting": settings[_setting_key(run)].id,
            "contender": contenders[_contender_key(run)].id,
            "seed": run.seed,
        }
        folder = results / run.folder
        row = {"suite": suite, **_identity(run), **keys, "hash8": folder.name.rpartition("-")[2]}
        if not (folder / "summary.json").exists():
            unfinished.append(_unfinished(run, folder))
            summary.append({**row, "status": unfinished[-1].status})
            continue
        try:
            found, spent = _json(folder / "summary.json"), _json(folder / "costs.json")
            curves.append(_curves(folder / "metrics.parquet", keys))
            clients.append(pl.read_parquet(folder / "clients.parquet").with_columns(**_literals(keys)))
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise ConfigError(f"{folder}: unreadable result ({error}); delete this folder and run it again") from None
        measured = {key: found.get(key) for key in ("status", "round", *IDENTITY[-3:], *METRICS)}
        summary.append({**row, **measured, **_spent(spent)})
        costs.append({**keys, **spent})
    return Collected(
        suite=suite,
        settings=tuple(settings.values()),
        contenders=tuple(contenders.values()),
        summary=_summary_frame(summary),
        curves=pl.concat(curves) if curves else pl.DataFrame(),
        clients=pl.concat(clients) if clients else pl.DataFrame(),
        own_rows=_own_rows(runs, settings, results),
        costs=pl.DataFrame(costs, infer_schema_length=None, strict=False),
        unfinished=tuple(unfinished),
    )


# -------------------------------------------------------------------------------------------- one run


def _identity(run: Run) -> dict[str, Any]:
    variant = run.variant
    return {
        "task": run.task.name, "variant": variant.name, "title": variant.title, "method": variant.method,
        "family": variant.family, "fidelity": run.fidelity.name, "optimal_router": variant.optimal_router,
        "oracle": variant.oracle,
    }  # fmt: skip


def _unfinished(run: Run, folder: Path) -> Unfinished:
    if not (folder / "failure.json").exists():
        return Unfinished(run=run, status="missing", reason="not run yet", exception="", hint="", round=None)
    failure = _json(folder / "failure.json")
    return Unfinished(
        run=run, status="failed", reason=failure["reason"], exception=failure["exception"], hint=failure["hint"],
        round=failure["round"],
    )  # fmt: skip


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


def _own_rows(runs: list[Run], settings: Mapping[Hashable, Setting], results: Path) -> pl.DataFrame:
    """Test rows of each client by the partition tables that exist; each is read once for a setting and seed."""
    types = {"setting": pl.String, "seed": pl.Int32, "client": pl.Int32, "cluster": pl.Int32, "rows": pl.Int32}
    found, seen = [pl.DataFrame(schema=types)], set()
    for run in runs:
        setting = settings[_setting_key(run)]
        if (setting.id, run.seed) in seen or setting.metric == "loss":
            continue
        seen.add((setting.id, run.seed))
        path = results / run.partition.folder / "partition.parquet"
        if path.exists():
            test = pl.read_parquet(path).filter(pl.col("split") == "test")
            counts = test.group_by("client", "cluster").agg(rows=pl.len()).sort("client")
            keys = _literals({"setting": setting.id, "seed": run.seed})
            found.append(counts.with_columns(**keys).select(pl.col(name).cast(kind) for name, kind in types.items()))
    return pl.concat(found)


def _literals(keys: Mapping[str, Any]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in keys.items()}


def _summary_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Fixed columns and types, so that suites stack whatever has finished in them."""
    seconds = ("seconds_setup", "seconds_train", "seconds_evaluate", "seconds_total")
    types: dict[str, Any] = dict.fromkeys(IDENTITY, pl.String)
    types |= dict.fromkeys(("test_accuracy", "test_loss", "official_score", *seconds), pl.Float64) | METRICS
    types |= dict.fromkeys(("seed", "round", "bytes_per_round", "peak_memory_bytes"), pl.Int64)
    types |= dict.fromkeys(("optimal_router", "oracle"), pl.Boolean)
    types |= dict.fromkeys(("hash8", "setting", "contender"), pl.String)
    return pl.DataFrame(rows, schema=types, strict=False)


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


# -------------------------------------------------------------------- names of what differs in a suite


def _setting_key(run: Run) -> Hashable:
    return run.task.model_dump_json(), run.fidelity.model_dump_json()


def _contender_key(run: Run) -> Hashable:
    return run.variant.name, json.dumps(dict(run.variant.params), sort_keys=True)


def _settings(runs: list[Run]) -> dict[Hashable, Setting]:
    firsts: dict[Hashable, Run] = {}
    for run in runs:
        firsts.setdefault(_setting_key(run), run)
    facts = {key: {**_changed(run), **run.task.model_dump(exclude={"title"})} for key, run in firsts.items()}
    ids = _distinct(facts, {key: run.task.name for key, run in firsts.items()})
    settings = {}
    for key, run in firsts.items():
        suffix, differs = ids[key]
        title = f"{run.task.title}, {differs}" if differs else run.task.title
        settings[key] = Setting(id=run.task.name + suffix, title=title, task=run.task, fidelity=run.fidelity.name)
    return settings


def _changed(run: Run) -> dict[str, Any]:
    """The fidelity by name, and only those switches that the suite turned away from it."""
    usual = fidelity(run.fidelity.name).switches
    return {"fidelity": run.fidelity.name, **{k: v for k, v in run.fidelity.switches.items() if usual.get(k) != v}}


def _contenders(runs: list[Run]) -> dict[Hashable, Contender]:
    firsts = {}
    for run in runs:
        firsts.setdefault(_contender_key(run), run.variant)
    ids = _distinct({key: v.params for key, v in firsts.items()}, {key: v.name for key, v in firsts.items()})
    contenders = {}
    for key, variant in firsts.items():
        suffix, differs = ids[key]
        title = f"{variant.title}, {differs}" if differs else variant.title
        contenders[key] = Contender(id=variant.name + suffix, title=title, variant=variant)
    return contenders


def _distinct(
    facts: Mapping[Hashable, Mapping[str, Any]], names: Mapping[Hashable, str]
) -> dict[Hashable, tuple[str, str]]:
    """For each key, a suffix that makes its name unique and the values in which it differs from its namesakes."""
    told = {}
    for name in dict.fromkeys(names.values()):
        keys = [key for key in facts if names[key] == name]
        flat = [_flat(facts[key]) for key in keys]
        paths = dict.fromkeys(path for values in flat for path in values)
        varying = [path for path in paths if len({str(values.get(path)) for values in flat}) > 1]
        for position, (key, values) in enumerate(zip(keys, flat, strict=True)):
            differs = ", ".join(f"{path} {values.get(path, 'as usual')}" for path in varying)
            told[key] = (f"-{position + 1}" if position else "", differs)
    return told


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat

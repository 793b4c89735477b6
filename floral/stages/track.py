"""Stage track: a suite's runs as MLflow runs. A view of the run folders, which can be rebuilt at any time.

The only module that imports MLflow, and only when it is called: that takes seconds.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from floral import config, reading
from floral.config import ConfigError, Run
from floral.files import atomic
from floral.stages import segments
from floral.stages.locks import held
from floral.stages.segments import Evaluated

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

ARTIFACTS = ("run.yaml", "metrics.parquet", "clients.parquet", "routes.parquet", "summary.json", "costs.json")
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100
"""MLflow's limits for one log_batch."""
LONGEST_PARAM = 6000
STREAMED = "streamed"
"""The tag with the last round that was logged while the run trained."""
EVERY = 5.0
"""Seconds between two looks at the runs."""


def default_uri(results: Path) -> str:
    """The SQLite store of a results folder, absolute: MLflow resolves a relative one against each process's folder."""
    return f"sqlite:///{(results / 'track' / 'mlflow.db').absolute()}"


def create_store(uri: str) -> None:
    """Make the store's tables if they are missing, one process at a time: MLflow's migration does not bear two.

    Raises:
        ConfigError: the store cannot be opened or written.
    """
    with _explained(uri):
        _client(uri).search_experiments(max_results=1)


def track(suite: str, runs: Iterable[Run], results: Path, tracking_uri: str | None = None) -> Path:
    """Log each finished run that the suite's MLflow experiment does not hold yet; write results/track/<suite>.json.

    Times are those of the runs, so tracking twice changes nothing. A run of which only a part was logged, because
    tracking was killed or followed it while it trained, is completed.

    Raises:
        ConfigError: the store cannot be opened or written.
    """
    uri = tracking_uri or default_uri(results)
    folders = [run.folder for run in runs if (results / run.folder / "summary.json").exists()]
    with _experiment_of(suite, results, tracking_uri) as (client, experiment):
        known = _known(client, experiment)
        tracked = {str(folder): _log(client, experiment, known.get(str(folder)), folder, results) for folder in folders}
        value = {"tracking_uri": uri, "experiment_id": experiment, "runs": tracked}
        path = results / "track" / f"{suite}.json"
        atomic(path, (json.dumps(value, indent=1) + "\n").encode())
    return path


def follow(
    suite: str, runs: Iterable[Run], results: Path, tracking_uri: str | None = None, every: float = EVERY
) -> None:
    """Log the rounds of all runs as they come, until every run is finished and logged whole.

    What the store has is asked anew whenever there is something to log, and other processes may track the same suite
    meanwhile: so a store that dies and comes back, or this process, lose and double nothing.

    Raises:
        ConfigError: the store refuses; one that does not answer is tried again, and that is said once.
    """
    todo = {run.folder: run for run in runs}
    seen: dict[Path, tuple[int, bool]] = {}
    silent = False
    while True:
        news = {}
        for folder in todo:
            mark = segments.size(results / folder), (results / folder / "summary.json").exists()
            if mark != (0, False) and mark != seen.get(folder):
                news[folder] = mark
        try:
            if news:
                with _experiment_of(suite, results, tracking_uri) as (client, experiment):
                    known = _known(client, experiment)
                    for folder, (_, finished) in news.items():
                        bring = _log if finished else _stream
                        bring(client, experiment, known.get(str(folder)), folder, results)
                        seen[folder] = news[folder]
            silent = False
        except Silent as error:
            if not silent:
                print(f"{error}\ntrying again every {every:g} s; Ctrl-C ends this, and no run notices", flush=True)
            silent = True
        for folder, (_, finished) in seen.items():
            if finished:
                todo.pop(folder, None)
        if not todo:
            return
        time.sleep(every)


def attach(suite: str, results: Path, reports: Path, tracking_uri: str | None = None) -> str:
    """Put the suite's page, tables and figures into an MLflow run named after the suite; return that run's id."""
    with _experiment_of(suite, results, tracking_uri) as (client, experiment):
        found = _known(client, experiment).get(f"report/{suite}")
        tags = {"job_key": f"report/{suite}", "suite": suite}
        run_id = found.id if found else client.create_run(experiment, None, tags, f"report of {suite}").info.run_id
        client.log_artifacts(run_id, str(reports / suite), "report")
        client.set_terminated(run_id)
    return run_id


# ---------------------------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Known:
    """What the store has of a run: its id there, whether it is whole, and the last round that was streamed."""

    id: str
    complete: bool = False
    streamed: int = -1


def _stream(client: MlflowClient, experiment: str, known: Known | None, folder: Path, results: Path) -> None:
    """Log the rounds that a run has evaluated since the last time."""
    found = segments.read(results / folder)
    if not found or (known and (known.complete or found[-1].round <= known.streamed)):
        return
    from mlflow.entities import RunTag

    known = known or _begin(client, experiment, folder, results, found[0].time)
    points = _points(evaluated for evaluated in found if evaluated.round > known.streamed)
    for metrics in _chunks(points, METRICS_A_CALL):
        client.log_batch(known.id, metrics=metrics)
    client.log_batch(known.id, tags=[RunTag(STREAMED, str(found[-1].round))])  # last: until then they are logged again


def _begin(client: MlflowClient, experiment: str, folder: Path, results: Path, began: int) -> Known:
    """Make the run in the store, with what is known of it from its start."""
    settings = reading.load_yaml((results / folder / "run.yaml").read_text(encoding="utf-8"))
    task, variant, seed = settings["task"]["name"], settings["variant"]["name"], settings["seed"]
    tags = {
        "job_key": str(folder), "task": task, "variant": variant, "method": settings["variant"]["method"],
        "family": settings["variant"]["family"], "seed": str(seed), "fidelity": settings["fidelity"]["name"],
        "status": "running", "hash8": settings["hash8"],
    }  # fmt: skip
    run_id = client.create_run(experiment, began, tags, f"{task}/{variant}/seed{seed}").info.run_id
    for params in _chunks(_params(settings), PARAMS_A_CALL):
        client.log_batch(run_id, params=params)
    return Known(run_id)


def _log(client: MlflowClient, experiment: str, known: Known | None, folder: Path, results: Path) -> str:
    """Log what the store lacks of a finished run; returns its id there.

    Should the store hold other values, because the run was trained anew with other code, it is logged anew.
    """
    if known and known.complete:
        return known.id
    from mlflow.entities import RunTag

    source = results / folder
    summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
    end = int(datetime.fromisoformat(summary["finished_at"]).timestamp() * 1000)
    curves = _curves(source, end)
    has = _logged(client, known.id, curves) if known else {}
    if known and any(_differs(has.get((point.key, point.step)), point.value) for point in curves):
        client.delete_run(known.id)
        known, has = None, {}
    known = known or _begin(client, experiment, folder, results, end - int(1000 * costs["seconds"]["total"]))
    lacking = [point for point in curves if (point.key, point.step) not in has]
    for metrics in _chunks(lacking + _costs(costs, summary["round"], end), METRICS_A_CALL):
        client.log_batch(known.id, metrics=metrics)
    tags = {"status": summary["status"], "git_commit": costs["git_commit"], "version": costs["versions"]["floral"]}
    client.log_batch(known.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
    for name in ARTIFACTS:
        if (source / name).exists():
            client.log_artifact(known.id, str(source / name))
    client.set_terminated(known.id, "FINISHED", end)
    return known.id


def _differs(logged: float | None, value: float) -> bool:
    """Whether the store has another value; what is not finite it may keep in a form of its own."""
    return logged is not None and math.isfinite(value) and logged != value


def _params(settings: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(key, value[:LONGEST_PARAM]) for key, value in _flat(settings)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as dotted keys; a list is one JSON value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _points(evaluated: Iterable[Evaluated]) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(f"{split}.{metric}", value, one.time, one.round)
        for one in evaluated
        for split, metric, value in one.metrics
    ]


def _curves(source: Path, end: int) -> list[Metric]:
    """metrics.parquet: each point at the time at which the run said it, or at the run's end."""
    import polars as pl
    from mlflow.entities import Metric

    said = {(point.key, point.step): point.timestamp for point in _points(segments.read(source))}
    table = pl.read_parquet(source / "metrics.parquet", columns=["split", "metric", "value", "round"]).drop_nulls()
    rows = ((f"{split}.{metric}", value, step) for split, metric, value, step in table.iter_rows())
    return [Metric(key, value, said.get((key, step), end), step) for key, value, step in rows]


def _costs(costs: Mapping[str, Any], last: int, end: int) -> list[Metric]:
    from mlflow.entities import Metric

    numbers = {**costs["parameters"], **{f"seconds_{key}": value for key, value in costs["seconds"].items()}}
    numbers |= {key: costs[key] for key in ("bytes_per_round", "passes_per_sample", "peak_memory_bytes", "resumptions")}
    return [Metric(f"costs.{k}", float(value), end, last) for k, value in numbers.items() if value is not None]


def _logged(client: MlflowClient, run_id: str, curves: list[Metric]) -> dict[tuple[str, int], float]:
    """The points of these curves that the store has already."""
    keys = dict.fromkeys(point.key for point in curves)
    return {(key, point.step): point.value for key in keys for point in client.get_metric_history(run_id, key)}


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


# --------------------------------------------------------------------------------------------- the store


@contextmanager
def _experiment_of(suite: str, results: Path, tracking_uri: str | None) -> Iterator[tuple[MlflowClient, str]]:
    """A client and the suite's experiment, for one process at a time: two would both find nothing and both create.
    Suites do not wait for one another."""
    uri = tracking_uri or default_uri(results)
    with _explained(uri), held(results / "track" / f"{suite}.lock", f"tracking {suite}"):
        client = _client(uri)
        yield client, _experiment(client, suite, None if tracking_uri else results)


def _client(uri: str) -> MlflowClient:
    """A client of the store, whose tables exist afterwards."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    if not uri.startswith("sqlite:///"):
        return _connect(uri)
    database = Path(uri.removeprefix("sqlite:///"))
    with held(database.with_name(f"{database.name}.lock"), "opening the MLflow store"):
        if not database.exists():
            _make_database(database)
        _check_database(database)
        return _connect(uri)


def _make_database(database: Path) -> None:
    """Make the tables under another name: MLflow cannot go on with a migration that was killed in the middle."""
    partial = database.with_name(f"{database.name}.partial")
    for left in (partial, partial.with_name(f"{partial.name}-journal")):
        left.unlink(missing_ok=True)
    _check_database(partial)
    _connect(f"sqlite:///{partial}").search_experiments(max_results=1)
    partial.rename(database)


def _connect(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they announce every step of the migration
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _check_database(database: Path) -> None:
    """Raise sqlite3.Error at once for what MLflow would try again for minutes."""
    connection = sqlite3.connect(database, timeout=30)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.rollback()
    finally:
        connection.close()


class Silent(ConfigError):
    """The store does not answer now, and may later."""


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise _unusable(uri, error) from error
    except Exception as error:
        if type(error).__module__.startswith(("mlflow.", "sqlalchemy.")):
            raise _unusable(uri, error) from error
        raise


def _unusable(uri: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0]
    kind = Silent if _may_pass(error) else ConfigError
    return kind(
        f"the MLflow store {uri} cannot be written: {reason}; make it writable or move the file away (it is "
        f"rebuilt from the run folders), or set tracking_uri in {config.CONFIG}/config.yaml (the report needs none)"
    )


def _may_pass(error: Exception) -> bool:
    """Whether it is worth to ask again: a server that is down or busy, a locked database; not what a user can mend."""
    if isinstance(error, OSError | sqlite3.OperationalError):
        return True
    status = getattr(error, "get_http_status_code", None)  # MLflow's errors have it, also those without a server
    return type(error).__name__ == "OperationalError" or (status is not None and status() >= 500)


def _experiment(client: MlflowClient, suite: str, results: Path | None) -> str:
    """The suite's experiment, made or taken out of MLflow's bin; a server chooses the place of artifacts itself."""
    found = client.get_experiment_by_name(suite)
    if found is None:
        place = (results / "track" / "artifacts" / suite).absolute().as_uri() if results else None
        return client.create_experiment(suite, artifact_location=place)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _known(client: MlflowClient, experiment: str) -> dict[str, Known]:
    """job_key → its MLflow run. Of several, which a request leaves whose answer was lost, one stays."""
    known: dict[str, Known] = {}
    doubled, token = [], None
    while True:
        page = client.search_runs([experiment], max_results=1000, order_by=["attributes.start_time"], page_token=token)
        for run in page:
            tags = run.data.tags
            if (key := tags.get("job_key")) in known:
                doubled.append(run.info.run_id)
            elif key is not None:
                known[key] = Known(run.info.run_id, run.info.status == "FINISHED", int(tags.get(STREAMED, -1)))
        if not (token := page.token):
            break
    for run_id in doubled:
        client.delete_run(run_id)
    return known

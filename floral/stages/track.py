"""Stage track: a suite's runs as MLflow runs. A view of the run folders, which can be rebuilt at any time.

The only module that imports MLflow, and only when it is called: that takes seconds.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from floral import config
from floral.config import ConfigError, Run
from floral.files import atomic
from floral.stages.locks import held

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

ARTIFACTS = ("run.yaml", "metrics.parquet", "clients.parquet", "routes.parquet", "summary.json", "costs.json")
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100
"""MLflow's limits for one log_batch."""
LONGEST_PARAM = 6000


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
    tracking was killed, is completed.

    Raises:
        ConfigError: the store cannot be opened or written.
    """
    uri = tracking_uri or default_uri(results)
    folders = [run.folder for run in runs if (results / run.folder / "summary.json").exists()]
    with _explained(uri), _alone(suite, results):
        client = _client(uri)
        experiment = _experiment(client, suite, None if tracking_uri else results)
        known = _known(client, experiment)
        tracked = {}
        for folder in folders:
            run_id, complete = known.get(str(folder), (None, False))
            tracked[str(folder)] = run_id if run_id and complete else _log(client, experiment, run_id, folder, results)
        value = {"tracking_uri": uri, "experiment_id": experiment, "runs": tracked}
        path = results / "track" / f"{suite}.json"
        atomic(path, (json.dumps(value, indent=1) + "\n").encode())
    return path


def attach(suite: str, results: Path, reports: Path, tracking_uri: str | None = None) -> str:
    """Put the suite's page, tables and figures into an MLflow run named after the suite; return that run's id."""
    uri = tracking_uri or default_uri(results)
    with _explained(uri), _alone(suite, results):
        client = _client(uri)
        experiment = _experiment(client, suite, None if tracking_uri else results)
        run_id, _ = _known(client, experiment).get(f"report/{suite}", (None, False))
        if run_id is None:
            tags = {"job_key": f"report/{suite}", "suite": suite}
            run_id = client.create_run(experiment, run_name=f"report of {suite}", tags=tags).info.run_id
        client.log_artifacts(run_id, str(reports / suite), "report")
        client.set_terminated(run_id)
    return run_id


# ---------------------------------------------------------------------------------------------- one run


def _log(client: MlflowClient, experiment: str, run_id: str | None, folder: Path, results: Path) -> str:
    source = results / folder
    settings = yaml.load(
        (source / "run.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
    end = int(datetime.fromisoformat(summary["finished_at"]).timestamp() * 1000)
    if run_id is None:
        name = f"{summary['task']}/{summary['variant']}/seed{summary['seed']}"
        begin = end - int(1000 * costs["seconds"]["total"])
        run_id = client.create_run(experiment, begin, _tags(folder, summary, costs), name).info.run_id
    for params in _chunks(_params(settings), PARAMS_A_CALL):
        client.log_batch(run_id, params=params)
    for metrics in _chunks(_metrics(source, costs, summary["round"], end), METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics)
    for name in ARTIFACTS:
        if (source / name).exists():
            client.log_artifact(run_id, str(source / name))
    client.set_terminated(run_id, "FINISHED", end)
    return run_id


def _tags(folder: Path, summary: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, str]:
    keys = ("task", "variant", "method", "family", "seed", "fidelity", "status", "hash8")
    tags = {key: str(summary[key]) for key in keys}
    return {
        "job_key": str(folder),
        **tags,
        "git_commit": str(costs["git_commit"]),
        "version": costs["versions"]["floral"],
    }


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


def _metrics(source: Path, costs: Mapping[str, Any], last: int, time: int) -> list[Metric]:
    import polars as pl
    from mlflow.entities import Metric

    table = pl.read_parquet(source / "metrics.parquet", columns=["split", "metric", "value", "round"]).drop_nulls()
    curves = [Metric(f"{split}.{metric}", value, time, step) for split, metric, value, step in table.iter_rows()]
    numbers = {**costs["parameters"], **{f"seconds_{key}": value for key, value in costs["seconds"].items()}}
    numbers |= {key: costs[key] for key in ("bytes_per_round", "passes_per_sample", "peak_memory_bytes", "resumptions")}
    return curves + [
        Metric(f"costs.{k}", float(value), time, last) for k, value in numbers.items() if value is not None
    ]


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


# --------------------------------------------------------------------------------------------- the store


def _alone(suite: str, results: Path) -> AbstractContextManager[None]:
    """Find or create, then log: two processes in one experiment would both create. Suites do not wait for another."""
    return held(results / "track" / f"{suite}.lock", f"tracking {suite}")


def _client(uri: str) -> MlflowClient:
    """A client of the store, whose tables exist afterwards."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    if not uri.startswith("sqlite:///"):
        return _connect(uri)
    database = Path(uri.removeprefix("sqlite:///"))
    with held(database.with_name(f"{database.name}.lock"), "opening the MLflow store"):
        _check_database(database)
        return _connect(uri)


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
    return ConfigError(
        f"the MLflow store {uri} cannot be written: {reason}; make it writable or move the file away (it is "
        f"rebuilt from the run folders), or set tracking_uri in {config.CONFIG}/config.yaml (the report needs none)"
    )


def _experiment(client: MlflowClient, suite: str, results: Path | None) -> str:
    """The suite's experiment, made or taken out of MLflow's bin; a server chooses the place of artifacts itself."""
    found = client.get_experiment_by_name(suite)
    if found is None:
        place = (results / "track" / "artifacts" / suite).absolute().as_uri() if results else None
        return client.create_experiment(suite, artifact_location=place)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _known(client: MlflowClient, experiment: str) -> dict[str, tuple[str, bool]]:
    """job_key → id of its MLflow run, and whether that is complete."""
    known, token = {}, None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        known |= {
            run.data.tags["job_key"]: (run.info.run_id, run.info.status == "FINISHED")
            for run in page
            if "job_key" in run.data.tags
        }
        if not (token := page.token):
            return known

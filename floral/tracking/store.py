"""The MLflow store: it is opened here, and a suite's experiment in it."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from floral.config import paths
from floral.config.reading import ConfigError
from floral.io.locks import held

if TYPE_CHECKING:
    from mlflow import MlflowClient


STREAMED = "streamed"
"""The tag with the last round that was logged while the run trained."""
MEANS = "means"
"""The tag of a parent run with the hash of the means that were logged, or were about to be."""
PARENT = "mlflow.parentRunId"
"""By this tag MLflow's UI shows a run below its parent."""


def default_uri(results: Path) -> str:
    """The SQLite store of a results folder, absolute: MLflow resolves a relative one against each process's folder."""
    return f"sqlite:///{(results / 'track' / 'mlflow.db').absolute()}"


def create_store(uri: str) -> None:
    """Make the store's tables if they are missing, one process at a time: MLflow's migration does not bear two.

    Raises:
        ConfigError: the store cannot be opened or written.
    """
    with explained(uri):
        client_of(uri).search_experiments(max_results=1)


@dataclass(frozen=True)
class Known:
    """What the store has of a run: its id there, whether it is whole, the last round that was streamed, its parent,
    whether its data are said and, of a parent, the hash of its means."""

    id: str
    complete: bool = False
    streamed: int = -1
    parent: str | None = None
    data: bool = False
    means: str | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A suite's experiment in the store, what it holds (job_key → Known), and the results that it shows."""

    client: MlflowClient
    experiment: str
    suite: str
    results: Path
    known: dict[str, Known]

    def create(self, name: str, tags: dict[str, str], began: int | None) -> str:
        return self.client.create_run(self.experiment, began, tags, name).info.run_id


@contextmanager
def experiment_of(suite: str, results: Path, tracking_uri: str | None) -> Iterator[Place]:
    """The suite's experiment and what it holds, for one process at a time: two would both find nothing and both create.
    Suites do not wait for one another."""
    uri = tracking_uri or default_uri(results)
    with explained(uri), held(results / "track" / f"{suite}.lock", f"tracking {suite}"):
        client = client_of(uri)
        experiment = _experiment(client, suite, None if tracking_uri else results)
        known = _known(client, experiment)
        yield Place(client=client, experiment=experiment, suite=suite, results=results, known=known)


def client_of(uri: str) -> MlflowClient:
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
def explained(uri: str) -> Iterator[None]:
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
        f"rebuilt from the run folders), or set tracking_uri in {paths.CONFIG_FOLDER}/config.yaml "
        "(the report needs none)"
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
                known[key] = Known(
                    run.info.run_id, complete=run.info.status == "FINISHED", streamed=int(tags.get(STREAMED, -1)),
                    parent=tags.get(PARENT), data=bool(run.inputs and run.inputs.dataset_inputs), means=tags.get(MEANS),
                )  # fmt: skip
        if not (token := page.token):
            break
    for run_id in doubled:
        client.delete_run(run_id)
    return known

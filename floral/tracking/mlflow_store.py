"""Open the MLflow store (a database or a server), and open the experiment of a suite in the store."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from floral.config.reading import ConfigError
from floral.io.locks import held
from floral.tracking.appearance import Appearance
from floral.tracking.mlflow_errors import check_artifact_place, unusable

if TYPE_CHECKING:
    from mlflow import MlflowClient


STREAMED = "streamed"
"""Tag of a run: the last round that was logged while the run trained."""
MEANS = "means"
"""Tag of a parent run: the hash of its means, set before the means are logged."""
RESULTS = "results_digest"
"""Tag of a completely logged run: the hash of its result files. A run that was trained again has another hash."""
NAMES, NAMES_NOW = "metric_names", "2"
"""Tag of a run: the version of the names of its metrics (see floral.runs.quantities), and today's version."""
CONFIGURATION = "configuration"
"""Tag of a run: its task, and the settings that tell it from other configurations of this task in the suite."""
COLOUR = "mlflow.runColor"
"""Tag of a run: its colour in MLflow's charts."""
PARENT = "mlflow.parentRunId"
"""Tag of a run: the id of its parent, below which MLflow's UI shows the run."""

KIND = "mlflow.experimentKind"
"""Tag of an experiment. Without it, MLflow's UI may open its start page for generative AI."""


def default_uri(results: Path) -> str:
    """Return the URI of the SQLite database that is the MLflow store of a results folder.

    The path is absolute, because MLflow resolves a relative path against the current folder of each process.
    """
    return f"sqlite:///{(results / 'track' / 'mlflow.db').absolute()}"


def create_store(uri: str) -> None:
    """Create the tables of the MLflow store if they are missing.

    Only one process at a time creates the tables, because MLflow fails if two processes do this at once.

    Raises:
        ConfigError: the MLflow store cannot be opened or written.
    """
    with explained(uri):
        client_of(uri).search_experiments(max_results=1)


@dataclass(frozen=True)
class StoredRun:
    """A run as it is recorded in the MLflow store."""

    id: str
    """MLflow's id of the run."""
    complete: bool = False
    """Whether all its values are logged."""
    streamed: int = -1
    """The last round that was logged while the run trained; -1 before the first."""
    parent: str | None = None
    """MLflow's id of the parent run."""
    data: bool = False
    """Whether its partition and data set are logged."""
    means: str | None = None
    """The hash of the means, for a parent run."""
    results: str | None = None
    """The hash of the result files that are logged; None if the run is not completely logged."""
    params: frozenset[str] = frozenset()
    """Names of its parameters."""
    earlier: bool = False
    """Whether its metrics have the names of an earlier version. Then it is archived, and logged again."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The experiment of a suite in the MLflow store, with its runs and with the results folder of these runs."""

    client: MlflowClient
    id: str
    """MLflow's id of the experiment."""
    suite: str
    results: Path
    stored: dict[str, StoredRun]
    """job_key → run."""
    appearance: Appearance = field(default_factory=Appearance)

    def create(self, name: str, tags: Mapping[str, str | None], began: int | None) -> str:
        """Create a run in the experiment and return MLflow's id of the run.

        `began` is when the run began, in milliseconds since 1970. Tags with the value None are left out.
        """
        present = {key: value for key, value in tags.items() if value is not None}
        return self.client.create_run(self.id, began, {**present, NAMES: NAMES_NOW}, name).info.run_id

    def current(self, job_key: str) -> StoredRun | None:
        """Return the stored run, or None if it is missing. A run with earlier names of metrics is archived first."""
        stored = self.stored.get(job_key)
        if stored is not None and stored.earlier:
            self.archive(job_key)
            return None
        return stored

    def archive(self, job_key: str) -> None:
        """Archive a run: MLflow's page does not show it any more, but can restore it."""
        self.client.delete_run(self.stored.pop(job_key).id)


@contextmanager
def experiment_of(
    suite: str, results: Path, tracking_uri: str | None, appearance: Appearance | None = None
) -> Iterator[Experiment]:
    """Yield the experiment of a suite, and hold the suite's lock until the context ends.

    Without the lock, two processes could both create the same run. Each suite has its own lock.
    """
    uri = tracking_uri or default_uri(results)
    with explained(uri), held(results / "track" / f"{suite}.lock", f"tracking {suite}"):
        client = client_of(uri)
        experiment = _experiment_id(client, suite, None if tracking_uri else results, uri)
        stored = _stored_runs(client, experiment)
        yield Experiment(
            client=client,
            id=experiment,
            suite=suite,
            results=results,
            stored=stored,
            appearance=appearance or Appearance(),
        )


def client_of(uri: str) -> MlflowClient:
    """Return an MlflowClient for the MLflow store. A SQLite database that is missing is created first."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # MLflow would print the address with its password
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
    """Create the tables in a temporary file, then give the file its final name.

    If MLflow is killed while it creates the tables, it cannot complete them later. Because of the temporary file, such
    an incomplete database is never used.
    """
    partial = database.with_name(f"{database.name}.partial")
    for path in (partial, partial.with_name(f"{partial.name}-journal")):
        path.unlink(missing_ok=True)
    _check_database(partial)
    _connect(f"sqlite:///{partial}").search_experiments(max_results=1)
    partial.rename(database)


def _connect(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they log every step of the migration
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _check_database(database: Path) -> None:
    """Raise sqlite3.Error at once if the database cannot be used.

    Without this check, MLflow would retry for minutes.
    """
    connection = sqlite3.connect(database, timeout=30)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.rollback()
    finally:
        connection.close()


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors of the MLflow store inside this context into a ConfigError that says what to do.

    If a retry may succeed, the error is Unreachable.
    """
    try:
        yield
    except ConfigError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise unusable(uri, error) from error
    except Exception as error:
        if type(error).__module__.startswith(("mlflow.", "sqlalchemy.")):
            raise unusable(uri, error) from error
        raise


def _experiment_id(client: MlflowClient, suite: str, results: Path | None, uri: str) -> str:
    """Return MLflow's id of the suite's experiment. A missing experiment is created; a deleted one is restored.

    Artifacts are stored below `results`. If `results` is None, the MLflow server chooses where artifacts are stored.

    Raises:
        ConfigError: artifacts would be stored in a folder of the server's machine, which this machine does not have.
    """
    experiment = client.get_experiment_by_name(suite)
    if experiment is None:
        location = (results / "track" / "artifacts" / suite).absolute().as_uri() if results else None
        experiment = client.get_experiment(client.create_experiment(suite, artifact_location=location))
    if KIND not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, KIND, "custom_model_development")
    if uri.startswith("http"):
        check_artifact_place(uri, suite, experiment.artifact_location)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def _stored_runs(client: MlflowClient, experiment: str) -> dict[str, StoredRun]:
    """Return the runs of an experiment as job_key → run, and delete duplicates.

    A duplicate arises if the answer to a request to create a run is lost, and the request is repeated.
    """
    stored: dict[str, StoredRun] = {}
    duplicates, token = [], None
    while True:
        page = client.search_runs([experiment], max_results=1000, order_by=["attributes.start_time"], page_token=token)
        for run in page:
            tags = run.data.tags
            key = tags.get("job_key")
            if key in stored:
                duplicates.append(run.info.run_id)
            elif key is not None:
                stored[key] = StoredRun(
                    run.info.run_id, complete=run.info.status == "FINISHED", streamed=int(tags.get(STREAMED, -1)),
                    parent=tags.get(PARENT), data=bool(run.inputs and run.inputs.dataset_inputs), means=tags.get(MEANS),
                    results=tags.get(RESULTS), params=frozenset(run.data.params),
                    earlier=tags.get(NAMES) != NAMES_NOW and tags.get("kind") != "report",
                )  # fmt: skip
        if not (token := page.token):
            break
    for run_id in duplicates:
        client.delete_run(run_id)
    return stored

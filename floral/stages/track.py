"""Stage track: a suite's runs as MLflow runs. A view of the run folders, which can be rebuilt at any time.

Each task × variant is a parent run with the means over its seeds, and each seed a child of it.

The only module that imports MLflow, and only when it is called: that takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from floral import config, reading
from floral.config import ConfigError, Run
from floral.files import atomic
from floral.stages import segments
from floral.stages.compared import Compared, Means, compared, means
from floral.stages.locks import held
from floral.stages.segments import Evaluated

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

ARTIFACTS = ("run.yaml", "metrics.parquet", "clients.parquet", "routes.parquet", "summary.json", "costs.json")
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100
"""MLflow's limits for one log_batch."""
LONGEST_PARAM = 6000
STREAMED = "streamed"
"""The tag with the last round that was logged while the run trained."""
MEANS = "means"
"""The tag of a parent run with the hash of the means that were logged, or were about to be."""
PARENT = "mlflow.parentRunId"
"""By this tag MLflow's UI shows a run below its parent."""
LONGEST_DIGEST = 36
"""MLflow's limit; a dataset's profile has the whole digest."""
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


def track(
    suite: str,
    runs: Iterable[Run],
    results: Path,
    tracking_uri: str | None = None,
    whole: Iterable[Run] | None = None,
) -> Path:
    """Log each finished run that the suite's MLflow experiment does not hold yet, and the means over the seeds of each
    task × variant; write results/track/<suite>.json.

    Times are those of the runs, so tracking twice changes nothing. A run of which only a part was logged, because
    tracking was killed or followed it while it trained, is completed. Where `runs` are some of a suite's, `whole` are
    all of them: means are over all seeds.

    Raises:
        ConfigError: the store cannot be opened or written.
    """
    uri = tracking_uri or default_uri(results)
    runs = list(runs)
    finished = [run.folder for run in runs if (results / run.folder / "summary.json").exists()]
    siblings = _siblings(whole or runs)
    with _experiment_of(suite, results, tracking_uri) as place:
        tracked = {str(folder): _log(place, _parent(place, siblings[folder]), folder) for folder in finished}
        for one in _distinct(siblings, finished):
            _say_means(place, one)
        value = {"tracking_uri": uri, "experiment_id": place.experiment, "runs": tracked}
        path = results / "track" / f"{suite}.json"
        atomic(path, (json.dumps(value, indent=1) + "\n").encode())
    return path


def follow(
    suite: str,
    runs: Iterable[Run],
    results: Path,
    tracking_uri: str | None = None,
    whole: Iterable[Run] | None = None,
    every: float = EVERY,
) -> None:
    """Log the rounds of all runs as they come, until every run is finished and logged whole.

    Means over seeds come when the last of them has ended; `whole` is that of `track`. What the store has is asked anew
    whenever there is something to log, and other processes may track the same suite meanwhile: so a store that dies
    and comes back, or this process, lose and double nothing.

    Raises:
        ConfigError: the store refuses; one that does not answer is tried again, and that is said once.
    """
    runs = list(runs)
    siblings = _siblings(whole or runs)
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
                with _experiment_of(suite, results, tracking_uri) as place:
                    for folder, (_, finished) in news.items():
                        bring = _log if finished else _stream
                        bring(place, _parent(place, siblings[folder]), folder)
                    for one in _distinct(siblings, news):
                        if one.finished(results):
                            _say_means(place, one)
                seen |= news
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
    with _experiment_of(suite, results, tracking_uri) as place:
        found = place.known.get(f"report/{suite}")
        tags = {"job_key": f"report/{suite}", "kind": "report", "suite": suite}
        run_id = found.id if found else place.create(f"report of {suite}", tags, None)
        place.client.log_artifacts(run_id, str(reports / suite), "report")
        place.client.set_terminated(run_id)
    return run_id


# ---------------------------------------------------------------------------------------------- one run


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


def _stream(place: Place, parent: str | None, folder: Path) -> None:
    """Log the rounds that a run has evaluated since the last time."""
    known, found = place.known.get(str(folder)), segments.read(place.results / folder)
    if parent is None or not found or (known and (known.complete or found[-1].round <= known.streamed)):
        return
    from mlflow.entities import RunTag

    known = _ready(place, parent, folder)
    points = _points(evaluated for evaluated in found if evaluated.round > known.streamed)
    for metrics in _chunks(points, METRICS_A_CALL):
        place.client.log_batch(known.id, metrics=metrics)
    last = [RunTag(STREAMED, str(found[-1].round))]  # said last: until then the rounds are logged again
    place.client.log_batch(known.id, tags=last)


def _ready(place: Place, parent: str, folder: Path) -> Known:
    """A run in the store, below its parent and with its data; it is made with what is known from its start."""
    settings = reading.load_yaml((place.results / folder / "run.yaml").read_text(encoding="utf-8"))
    known = place.known.get(str(folder)) or _begin(place, parent, folder, settings)
    if known.parent != parent:
        place.client.set_tag(known.id, PARENT, parent)
    if not known.data and (data := _data(settings, place.results)):
        place.client.log_inputs(known.id, data)
    place.known[str(folder)] = replace(known, parent=parent, data=True)
    return place.known[str(folder)]


def _begin(place: Place, parent: str, folder: Path, settings: Mapping[str, Any]) -> Known:
    task, variant, seed = settings["task"]["name"], settings["variant"]["name"], settings["seed"]
    tags = {
        "job_key": str(folder), "kind": "seed", "suite": place.suite, "task": task, "variant": variant,
        "method": settings["variant"]["method"], "family": settings["variant"]["family"], "seed": str(seed),
        "fidelity": settings["fidelity"]["name"], "status": "running", "hash8": settings["hash8"], PARENT: parent,
    }  # fmt: skip
    run_id = place.create(f"{task}/{variant}/seed{seed}", tags, _began(place.results / folder))
    for params in _chunks(_params(settings), PARAMS_A_CALL):
        place.client.log_batch(run_id, params=params)
    return Known(run_id, parent=parent)


def _log(place: Place, parent: str | None, folder: Path) -> str:
    """Log what the store lacks of a finished run; returns its id there.

    Should the store hold other values, because the run was trained anew with other code, it is logged anew.
    """
    assert parent is not None  # a finished run has a beginning
    known, client = place.known.get(str(folder)), place.client
    if known and known.complete:
        return _ready(place, parent, folder).id if known.parent != parent or not known.data else known.id
    from mlflow.entities import RunTag

    source = place.results / folder
    summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
    end = _ended(summary)
    curves = _curves(source, end)
    has = _logged(client, known.id, curves) if known else {}
    if known and any(_differs(has.get((point.key, point.step)), point.value) for point in curves):
        client.delete_run(known.id)
        del place.known[str(folder)]
        has = {}
    known = _ready(place, parent, folder)
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


def _began(source: Path) -> int | None:
    """When a run was begun, in ms; None before it has said anything."""
    if (source / "summary.json").exists():
        summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
        return _ended(summary) - int(1000 * costs["seconds"]["total"])
    found = segments.read(source)
    return found[0].time if found else None


def _ended(summary: Mapping[str, Any]) -> int:
    return int(datetime.fromisoformat(summary["finished_at"]).timestamp() * 1000)


def _data(settings: Mapping[str, Any], results: Path) -> list[DatasetInput]:
    """The partition that a run trained on and the data set that it divides, as far as run.yaml says them: a task
    without data has neither, and drawn data are part of their partition. Earlier runs leave the data to its card."""
    partition, task = settings["partition"], settings["task"]
    made = {partition["folder"].removeprefix("partition/"): (partition["digest"], partition["folder"])}
    card = results / partition["folder"] / "card.json"
    if "data" in settings:
        made[settings["data"]["name"]] = settings["data"]["digest"], f"data/{settings['data']['name']}"
    elif card.exists() and isinstance(task["data"], str):
        made[task["data"]] = json.loads(card.read_text())["data_digest"], f"data/{task['data']}"
    return [_dataset(name, digest, source) for name, (digest, source) in made.items() if digest is not None]


def _dataset(name: str, digest: str, source: str) -> DatasetInput:
    """`source` is a folder of the results."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({"digest": digest})
    data = Dataset(name, digest[:LONGEST_DIGEST], "local", json.dumps({"uri": source}), profile=profile)
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


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


# ------------------------------------------------------------------------------- the seeds of a task × variant


def _siblings(runs: Iterable[Run]) -> dict[Path, Compared]:
    """The folder of each run → the runs that differ from it in their seed alone."""
    return {run.folder: one for one in compared(runs).values() for run in one.runs}


def _distinct(siblings: Mapping[Path, Compared], folders: Iterable[Path]) -> Collection[Compared]:
    return {siblings[folder].key: siblings[folder] for folder in folders}.values()


def _parent(place: Place, one: Compared) -> str | None:
    """The parent run of all seeds of a task × variant, made if it is missing; None before any has said anything."""
    if found := place.known.get(one.job_key):
        return found.id
    began = [time for run in one.runs if (time := _began(place.results / run.folder)) is not None]
    if not began:
        return None
    place.known[one.job_key] = Known(_make_parent(place, one, min(began)))
    return place.known[one.job_key].id


def _make_parent(place: Place, one: Compared, began: int) -> str:
    run = one.runs[0]
    tags = {
        "job_key": one.job_key, "kind": "mean", "suite": place.suite, "task": run.task.name,
        "variant": run.variant.name, "method": run.variant.method, "family": str(run.variant.family),
        "fidelity": run.fidelity.name,
    }  # fmt: skip
    run_id = place.create(one.name, tags, began)
    for params in _chunks(_params(run.model_dump(mode="json", exclude={"seed"})), PARAMS_A_CALL):
        place.client.log_batch(run_id, params=params)
    return run_id


def _say_means(place: Place, one: Compared) -> None:
    """Log the means over the finished seeds to their parent; if it says others, it is made anew, for MLflow keeps
    every point of a curve."""
    found = means(one, place.results)
    digest = hashlib.sha256(json.dumps(asdict(found), sort_keys=True).encode()).hexdigest()[:8]
    known = place.known[one.job_key]
    if known.means == digest and known.complete:
        return
    from mlflow.entities import RunTag

    if known.means not in (None, digest):
        known = _replaced(place, one, known)
    tags = {MEANS: digest, "seeds": found.seeds}
    place.client.log_batch(known.id, tags=[RunTag(key, value) for key, value in tags.items()])
    end = max(_ended(summary) for summary in found.summaries)
    for metrics in _chunks(_mean_points(found, end), METRICS_A_CALL):
        place.client.log_batch(known.id, metrics=metrics)
    place.client.set_terminated(known.id, "FINISHED", end)


def _replaced(place: Place, one: Compared, old: Known) -> Known:
    """A new parent of the same children."""
    del place.known[one.job_key]
    new = _parent(place, one)
    assert new is not None
    for key, child in list(place.known.items()):
        if child.parent == old.id:
            place.client.set_tag(child.id, PARENT, new)
            place.known[key] = replace(child, parent=new)
    place.client.delete_run(old.id)
    return place.known[one.job_key]


def _mean_points(found: Means, end: int) -> list[Metric]:
    from mlflow.entities import Metric

    points = [Metric(key, value, end, step) for key, step, value in found.curves]
    bars = [Metric(key, value, end, 0) for key, value in found.values.items()]  # at another step MLflow draws points
    return points + bars


# --------------------------------------------------------------------------------------------- the store


@contextmanager
def _experiment_of(suite: str, results: Path, tracking_uri: str | None) -> Iterator[Place]:
    """The suite's experiment and what it holds, for one process at a time: two would both find nothing and both create.
    Suites do not wait for one another."""
    uri = tracking_uri or default_uri(results)
    with _explained(uri), held(results / "track" / f"{suite}.lock", f"tracking {suite}"):
        client = _client(uri)
        experiment = _experiment(client, suite, None if tracking_uri else results)
        known = _known(client, experiment)
        yield Place(client=client, experiment=experiment, suite=suite, results=results, known=known)


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
                known[key] = Known(
                    run.info.run_id, complete=run.info.status == "FINISHED", streamed=int(tags.get(STREAMED, -1)),
                    parent=tags.get(PARENT), data=bool(run.inputs and run.inputs.dataset_inputs), means=tags.get(MEANS),
                )  # fmt: skip
        if not (token := page.token):
            break
    for run_id in doubled:
        client.delete_run(run_id)
    return known

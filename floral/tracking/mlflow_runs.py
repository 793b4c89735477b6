"""Log one run to MLflow: its parameters, data, curves and costs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from floral.config import reading
from floral.config.run import Run
from floral.core.nested import dotted_keys
from floral.io.files import content_sha256
from floral.runs import segments
from floral.runs.quantities import IN_SUMMARY, curve_name, named_costs
from floral.runs.segments import Evaluated
from floral.runs.state import is_finished
from floral.tracking.mlflow_store import COLOUR, CONFIGURATION, PARENT, RESULTS, STREAMED, Experiment, StoredRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric


ARTIFACTS = ("run.yaml", "metrics.parquet", "clients.parquet", "routes.parquet", "summary.json", "costs.json")
MAX_METRICS_PER_CALL, MAX_PARAMS_PER_CALL = 1000, 100
"""MLflow's limits for one call of log_batch."""
MAX_PARAM_CHARACTERS = 6000
"""MLflow's limit for the value of a parameter."""
MAX_DIGEST_CHARACTERS = 36
"""MLflow's limit for the digest of a data set; the full digest is in the data set's profile."""


def stream(experiment: Experiment, parent: str | None, run: Run) -> None:
    """Log the rounds that an unfinished run has evaluated and that MLflow does not have yet."""
    stored, rounds = experiment.current(str(run.folder)), segments.read(experiment.results / run.folder)
    if parent is None or not rounds or (stored and (stored.complete or rounds[-1].round <= stored.streamed)):
        return
    from mlflow.entities import RunTag

    stored = ready(experiment, parent, run)
    points = _points(evaluated for evaluated in rounds if evaluated.round > stored.streamed)
    for metrics in chunks(points, MAX_METRICS_PER_CALL):
        experiment.client.log_batch(stored.id, metrics=metrics)
    last_round = RunTag(
        STREAMED, str(rounds[-1].round)
    )  # after the points: if this call is killed, they are logged again
    experiment.client.log_batch(stored.id, tags=[last_round])


def ready(experiment: Experiment, parent: str, run: Run) -> StoredRun:
    """Make sure that MLflow has the run, its parent run, its parameters and its data, and return the stored run."""
    key = str(run.folder)
    settings = reading.load_yaml((experiment.results / run.folder / "run.yaml").read_text(encoding="utf-8"))
    stored = experiment.stored.get(key) or _create_run(experiment, parent, run, settings)
    log_params(experiment, stored, settings, experiment.appearance.params)
    if stored.parent != parent:
        experiment.client.set_tag(stored.id, PARENT, parent)
    if not stored.data and (data := data_of(settings, experiment.results)):
        experiment.client.log_inputs(stored.id, data)
    params = stored.params | experiment.appearance.params
    experiment.stored[key] = replace(stored, parent=parent, data=True, params=params)
    return experiment.stored[key]


def _create_run(experiment: Experiment, parent: str, run: Run, settings: Mapping[str, Any]) -> StoredRun:
    """Create a run in MLflow, and return the stored run. `settings` is the content of its run.yaml."""
    label, seed = experiment.appearance.label(run), settings["seed"]
    tags = {
        "job_key": str(run.folder), "kind": "seed", "suite": experiment.suite, "task": settings["task"]["name"],
        "variant": settings["variant"]["name"], "method": settings["variant"]["method"],
        "family": settings["variant"]["family"], "seed": str(seed), "fidelity": settings["fidelity"]["name"],
        "status": "running", "hash8": settings["hash8"], PARENT: parent, COLOUR: label.colour,
        CONFIGURATION: label.configuration,
    }  # fmt: skip
    began = began_ms(experiment.results / run.folder)
    return StoredRun(experiment.create(f"{label.configuration}/{label.method}/seed{seed}", tags, began), parent=parent)


def log_params(experiment: Experiment, stored: StoredRun, settings: Mapping[str, Any], names: Set[str]) -> None:
    """Log the settings with these dotted names as parameters of a run, unless MLflow has them.

    When a suite gets new runs, settings that were equal can differ. Then the earlier runs get these parameters too.
    """
    missing = [param for param in params_of(settings) if param.key in names - stored.params]
    for params in chunks(missing, MAX_PARAMS_PER_CALL):
        experiment.client.log_batch(stored.id, params=params)


def log(experiment: Experiment, parent: str | None, run: Run) -> str:
    """Log the values of a finished run that MLflow does not have yet, and return MLflow's id of the run.

    If the run was trained again, MLflow has the values of the earlier training. The run is then deleted in MLflow and
    logged again.
    """
    assert parent is not None  # parent_of returns None only before the first evaluated round
    stored, client = experiment.current(str(run.folder)), experiment.client
    source = experiment.results / run.folder
    digest = _results_digest(source)
    if stored and stored.complete and stored.results == digest:
        is_ready = stored.parent == parent and stored.data and experiment.appearance.params <= stored.params
        return stored.id if is_ready else ready(experiment, parent, run).id
    from mlflow.entities import RunTag

    summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
    end = ended_ms(summary)
    curves = _curves(source, end)
    logged = _logged(client, stored.id, curves) if stored else {}
    trained_again = stored is not None and stored.results not in (None, digest)
    if stored and (trained_again or any(_differs(logged.get((p.key, p.step)), p.value) for p in curves)):
        experiment.archive(str(run.folder))
        stored, logged = None, {}
    stored = ready(experiment, parent, run)
    missing = [point for point in curves if (point.key, point.step) not in logged]
    points = missing + _last_values(summary, costs, {point.key for point in curves}, end)
    for metrics in chunks(points, MAX_METRICS_PER_CALL):
        client.log_batch(stored.id, metrics=metrics)
    tags = {"status": summary["status"], "git_commit": costs["git_commit"], "version": costs["versions"]["floral"]}
    client.log_batch(stored.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
    for name in ARTIFACTS:
        if (source / name).exists():
            client.log_artifact(stored.id, str(source / name))
    client.set_tag(stored.id, RESULTS, digest)
    client.set_terminated(stored.id, "FINISHED", end)
    return stored.id


def _results_digest(source: Path) -> str:
    """Return the hash of the result files of a finished run. It changes if the run is trained again."""
    hashes = [content_sha256(source / name) for name in ("metrics.parquet", "summary.json", "costs.json")]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def began_ms(source: Path) -> int | None:
    """Return when a run began, in milliseconds since 1970; None if the run has not evaluated a round yet.

    For an unfinished run, this is the time of its first evaluated round.
    """
    if is_finished(source):
        summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
        return ended_ms(summary) - int(1000 * costs["seconds"]["total"])
    rounds = segments.read(source)
    return rounds[0].time if rounds else None


def ended_ms(summary: Mapping[str, Any]) -> int:
    """Return when a run ended, in milliseconds since 1970. `summary` is the content of its summary.json."""
    return int(datetime.fromisoformat(summary["finished_at"]).timestamp() * 1000)


def data_of(settings: Mapping[str, Any], results: Path) -> list[DatasetInput]:
    """Return the partition and the data set of a run in the form that MLflow needs.

    The list is empty for a task without data. For synthetic data it has only the partition, because the partition
    determines the data. A run.yaml of an earlier version does not name the data set. Then the digest of the data set is
    read from the partition's card.json.
    """
    partition, task = settings["partition"], settings["task"]
    digests = {partition["folder"].removeprefix("partition/"): (partition["digest"], partition["folder"])}
    manifest = results / partition["folder"] / "card.json"
    if "data" in settings:
        digests[settings["data"]["name"]] = settings["data"]["digest"], f"data/{settings['data']['name']}"
    elif manifest.exists() and isinstance(task["data"], str):
        digests[task["data"]] = json.loads(manifest.read_text())["data_digest"], f"data/{task['data']}"
    return [_dataset(name, digest, source) for name, (digest, source) in digests.items() if digest is not None]


def _dataset(name: str, digest: str, source: str) -> DatasetInput:
    """Describe a data set or partition for MLflow. `source` is its folder, relative to the results folder."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({"digest": digest})
    data = Dataset(name, digest[:MAX_DIGEST_CHARACTERS], "local", json.dumps({"uri": source}), profile=profile)
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def _differs(logged: float | None, value: float) -> bool:
    """Return whether the value that MLflow has (`logged`) differs from the value of the run.

    The result is false if MLflow has no value (None). A value that is NaN or infinite is not compared, because MLflow
    may convert it.
    """
    return logged is not None and math.isfinite(value) and logged != value


def params_of(settings: Mapping[str, Any]) -> list[Any]:
    """Return nested settings as MLflow parameters with dotted names. Values other than strings are written as JSON."""
    from mlflow.entities import Param

    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in dotted_keys(settings).items()
    }
    return [Param(key, text[:MAX_PARAM_CHARACTERS]) for key, text in texts.items()]


def _points(rounds: Iterable[Evaluated]) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(curve_name(split, metric), value, round.time, round.round)
        for round in rounds
        for split, metric, value in round.metrics
    ]


def _curves(source: Path, end: int) -> list[Metric]:
    """Return the points of metrics.parquet for MLflow.

    A point has the time at which its round was evaluated, read from the segment files. If this time is unknown, the
    point has the time `end` at which the run ended, in milliseconds since 1970.
    """
    import polars as pl
    from mlflow.entities import Metric

    times = {(point.key, point.step): point.timestamp for point in _points(segments.read(source))}
    table = pl.read_parquet(source / "metrics.parquet", columns=["split", "metric", "value", "round"]).drop_nulls()
    rows = ((curve_name(split, metric), value, step) for split, metric, value, step in table.iter_rows())
    return [Metric(key, value, times.get((key, step), end), step) for key, value, step in rows]


def _last_values(summary: Mapping[str, Any], costs: Mapping[str, Any], curves: set[str], end: int) -> list[Metric]:
    """Return the numbers of summary.json and costs.json as metrics for MLflow, without those that have a curve.

    The metrics have the time `end` (milliseconds since 1970), and the step 0, because MLflow draws a bar only for a
    metric whose last step is 0.
    """
    from mlflow.entities import Metric

    results = {name: summary.get(key) for key, name in IN_SUMMARY.items() if name not in curves}
    numbers = {**results, **named_costs(costs)}
    return [Metric(key, float(value), end, 0) for key, value in numbers.items() if value is not None]


def _logged(client: MlflowClient, run_id: str, curves: list[Metric]) -> dict[tuple[str, int], float]:
    """Return the points of these curves that MLflow already has, as (name of the curve, round) → value."""
    keys = dict.fromkeys(point.key for point in curves)
    return {(key, point.step): point.value for key in keys for point in client.get_metric_history(run_id, key)}


def chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    """Split a list into parts with at most `size` values each."""
    return (values[start : start + size] for start in range(0, len(values), size))

"""One run in the store: its parameters, data, curves and costs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from floral.config import reading
from floral.runs import segments
from floral.runs.segments import Evaluated
from floral.runs.state import is_finished
from floral.tracking.store import PARENT, STREAMED, Known, Place

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric


ARTIFACTS = ("run.yaml", "metrics.parquet", "clients.parquet", "routes.parquet", "summary.json", "costs.json")
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100
"""MLflow's limits for one log_batch."""
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36
"""MLflow's limit; a dataset's profile has the whole digest."""


def stream(place: Place, parent: str | None, folder: Path) -> None:
    """Log the rounds that a run has evaluated since the last time."""
    known, found = place.known.get(str(folder)), segments.read(place.results / folder)
    if parent is None or not found or (known and (known.complete or found[-1].round <= known.streamed)):
        return
    from mlflow.entities import RunTag

    known = ready(place, parent, folder)
    points = _points(evaluated for evaluated in found if evaluated.round > known.streamed)
    for metrics in chunks(points, METRICS_A_CALL):
        place.client.log_batch(known.id, metrics=metrics)
    last = [RunTag(STREAMED, str(found[-1].round))]  # said last: until then the rounds are logged again
    place.client.log_batch(known.id, tags=last)


def ready(place: Place, parent: str, folder: Path) -> Known:
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
    run_id = place.create(f"{task}/{variant}/seed{seed}", tags, began_ms(place.results / folder))
    for params in chunks(params_of(settings), PARAMS_A_CALL):
        place.client.log_batch(run_id, params=params)
    return Known(run_id, parent=parent)


def log(place: Place, parent: str | None, folder: Path) -> str:
    """Log what the store lacks of a finished run; returns its id there.

    Should the store hold other values, because the run was trained anew with other code, it is logged anew.
    """
    assert parent is not None  # a finished run has a beginning
    known, client = place.known.get(str(folder)), place.client
    if known and known.complete:
        return ready(place, parent, folder).id if known.parent != parent or not known.data else known.id
    from mlflow.entities import RunTag

    source = place.results / folder
    summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
    end = ended_ms(summary)
    curves = _curves(source, end)
    has = _logged(client, known.id, curves) if known else {}
    if known and any(_differs(has.get((point.key, point.step)), point.value) for point in curves):
        client.delete_run(known.id)
        del place.known[str(folder)]
        has = {}
    known = ready(place, parent, folder)
    lacking = [point for point in curves if (point.key, point.step) not in has]
    for metrics in chunks(lacking + _costs(costs, summary["round"], end), METRICS_A_CALL):
        client.log_batch(known.id, metrics=metrics)
    tags = {"status": summary["status"], "git_commit": costs["git_commit"], "version": costs["versions"]["floral"]}
    client.log_batch(known.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
    for name in ARTIFACTS:
        if (source / name).exists():
            client.log_artifact(known.id, str(source / name))
    client.set_terminated(known.id, "FINISHED", end)
    return known.id


def began_ms(source: Path) -> int | None:
    """When a run was begun, in ms; None before it has said anything."""
    if is_finished(source):
        summary, costs = (json.loads((source / name).read_text()) for name in ("summary.json", "costs.json"))
        return ended_ms(summary) - int(1000 * costs["seconds"]["total"])
    found = segments.read(source)
    return found[0].time if found else None


def ended_ms(summary: Mapping[str, Any]) -> int:
    return int(datetime.fromisoformat(summary["finished_at"]).timestamp() * 1000)


def _data(settings: Mapping[str, Any], results: Path) -> list[DatasetInput]:
    """The partition that a run trained on and the data set that it divides, as far as run.yaml says them: a task
    without data has neither, and drawn data are part of their partition. Earlier runs leave the data to its card."""
    partition, task = settings["partition"], settings["task"]
    made = {partition["folder"].removeprefix("partition/"): (partition["digest"], partition["folder"])}
    manifest = results / partition["folder"] / "card.json"
    if "data" in settings:
        made[settings["data"]["name"]] = settings["data"]["digest"], f"data/{settings['data']['name']}"
    elif manifest.exists() and isinstance(task["data"], str):
        made[task["data"]] = json.loads(manifest.read_text())["data_digest"], f"data/{task['data']}"
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


def params_of(settings: Mapping[str, Any]) -> list[Any]:
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


def chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))

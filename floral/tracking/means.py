"""The parent run of a task and variant: means over its seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from floral.config.run import Run
from floral.runs.seed_groups import SeedGroup, SeedMeans, group_by_seed, seed_means
from floral.tracking.runs import METRICS_A_CALL, PARAMS_A_CALL, began_ms, chunks, ended_ms, params_of
from floral.tracking.store import MEANS, PARENT, Known, Place

if TYPE_CHECKING:
    from mlflow.entities import Metric


def siblings_of(runs: Iterable[Run]) -> dict[Path, SeedGroup]:
    """The folder of each run → the runs that differ from it in their seed alone."""
    return {run.folder: one for one in group_by_seed(runs).values() for run in one.runs}


def distinct(siblings: Mapping[Path, SeedGroup], folders: Iterable[Path]) -> Collection[SeedGroup]:
    return {siblings[folder].key: siblings[folder] for folder in folders}.values()


def parent_of(place: Place, one: SeedGroup) -> str | None:
    """The parent run of all seeds of a task × variant, made if it is missing; None before any has said anything."""
    if found := place.known.get(one.job_key):
        return found.id
    began = [time for run in one.runs if (time := began_ms(place.results / run.folder)) is not None]
    if not began:
        return None
    place.known[one.job_key] = Known(_make_parent(place, one, min(began)))
    return place.known[one.job_key].id


def _make_parent(place: Place, one: SeedGroup, began: int) -> str:
    run = one.runs[0]
    tags = {
        "job_key": one.job_key, "kind": "mean", "suite": place.suite, "task": run.task.name,
        "variant": run.variant.name, "method": run.variant.method, "family": str(run.variant.family),
        "fidelity": run.fidelity.name,
    }  # fmt: skip
    run_id = place.create(one.name, tags, began)
    for params in chunks(params_of(run.model_dump(mode="json", exclude={"seed"})), PARAMS_A_CALL):
        place.client.log_batch(run_id, params=params)
    return run_id


def log_means(place: Place, one: SeedGroup) -> None:
    """Log the means over the finished seeds to their parent; if it says others, it is made anew, for MLflow keeps
    every point of a curve."""
    found = seed_means(one, place.results)
    digest = hashlib.sha256(json.dumps(asdict(found), sort_keys=True).encode()).hexdigest()[:8]
    known = place.known[one.job_key]
    if known.means == digest and known.complete:
        return
    from mlflow.entities import RunTag

    if known.means not in (None, digest):
        known = _replaced(place, one, known)
    tags = {MEANS: digest, "seeds": found.seeds}
    place.client.log_batch(known.id, tags=[RunTag(key, value) for key, value in tags.items()])
    end = max(ended_ms(summary) for summary in found.summaries)
    for metrics in chunks(_mean_points(found, end), METRICS_A_CALL):
        place.client.log_batch(known.id, metrics=metrics)
    place.client.set_terminated(known.id, "FINISHED", end)


def _replaced(place: Place, one: SeedGroup, old: Known) -> Known:
    """A new parent of the same children."""
    del place.known[one.job_key]
    new = parent_of(place, one)
    assert new is not None
    for key, child in list(place.known.items()):
        if child.parent == old.id:
            place.client.set_tag(child.id, PARENT, new)
            place.known[key] = replace(child, parent=new)
    place.client.delete_run(old.id)
    return place.known[one.job_key]


def _mean_points(found: SeedMeans, end: int) -> list[Metric]:
    from mlflow.entities import Metric

    points = [Metric(key, value, end, step) for key, step, value in found.curves]
    bars = [Metric(key, value, end, 0) for key, value in found.values.items()]  # at another step MLflow draws points
    return points + bars

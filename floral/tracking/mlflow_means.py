"""Log means over seeds to MLflow. Each task × variant has a parent run with its means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from floral.config.reading import load_yaml
from floral.config.run import Run
from floral.runs.quantities import IN_SUMMARY
from floral.runs.seed_groups import SeedGroup, SeedMeans, group_by_seed, seed_means
from floral.runs.state import is_finished
from floral.tracking.mlflow_runs import (
    MAX_METRICS_PER_CALL,
    began_ms,
    chunks,
    data_of,
    ended_ms,
    log_params,
)
from floral.tracking.mlflow_store import COLOUR, CONFIGURATION, MEANS, PARENT, Experiment, StoredRun

if TYPE_CHECKING:
    from mlflow.entities import Metric


def groups_by_folder(runs: Iterable[Run]) -> dict[Path, SeedGroup]:
    """Return a mapping from the folder of each run to the SeedGroup that contains the run.

    The runs of a SeedGroup differ only in the seed.
    """
    return {run.folder: group for group in group_by_seed(runs).values() for run in group.runs}


def distinct_groups(group_of_folder: Mapping[Path, SeedGroup], folders: Iterable[Path]) -> Collection[SeedGroup]:
    """Return the SeedGroups of these run folders, without duplicates."""
    return {group_of_folder[folder].key: group_of_folder[folder] for folder in folders}.values()


def parent_of(experiment: Experiment, group: SeedGroup) -> str | None:
    """Return MLflow's id of the group's parent run. If the parent run is missing, create it.

    A parent run whose metrics have the names of an earlier version is replaced by a new one.

    Return None if no run of the group has evaluated a round yet.
    """
    parent = experiment.stored.get(group.job_key)
    if parent is not None and not parent.earlier:
        return parent.id
    began = [time for run in group.runs if (time := began_ms(experiment.results / run.folder)) is not None]
    if not began:
        return None
    if parent is not None:
        return _replace_parent(experiment, group, parent).id
    experiment.stored[group.job_key] = StoredRun(_make_parent(experiment, group, min(began)))
    return experiment.stored[group.job_key].id


def _make_parent(experiment: Experiment, group: SeedGroup, began: int) -> str:
    run, label = group.runs[0], experiment.appearance.label(group.runs[0])
    tags = {
        "job_key": group.job_key, "kind": "mean", "suite": experiment.suite, "task": run.task.name,
        "variant": run.variant.name, "method": run.variant.method, "family": str(run.variant.family),
        "fidelity": run.fidelity.name, COLOUR: label.colour, CONFIGURATION: label.configuration,
    }  # fmt: skip
    return experiment.create(f"{label.method} on {label.configuration}", tags, began)


def log_means(experiment: Experiment, group: SeedGroup) -> None:
    """Log the means over the finished seeds of a group to the group's parent run.

    If the parent run already has means that differ from these, it is replaced by a new parent run. The reason is that
    MLflow cannot delete single points of a curve.
    """
    means = seed_means(group, experiment.results)
    digest = hashlib.sha256(json.dumps(asdict(means), sort_keys=True).encode()).hexdigest()[:8]
    stored = experiment.stored[group.job_key]
    settings, names = group.runs[0].model_dump(mode="json"), experiment.appearance.params - {"seed"}
    if stored.means == digest and stored.complete:
        if names - stored.params:
            log_params(experiment, stored, settings, names)
        return
    from mlflow.entities import RunTag

    if stored.means not in (None, digest):
        stored = _replace_parent(experiment, group, stored)
    log_params(experiment, stored, settings, names)
    tags = {MEANS: digest, "seeds": means.seeds}
    experiment.client.log_batch(stored.id, tags=[RunTag(key, value) for key, value in tags.items()])
    end = max(ended_ms(summary) for summary in means.summaries)
    for metrics in chunks(_mean_points(means, end), MAX_METRICS_PER_CALL):
        experiment.client.log_batch(stored.id, metrics=metrics)
    _log_files(experiment, group, stored, means)
    experiment.client.set_terminated(stored.id, "FINISHED", end)


def _log_files(experiment: Experiment, group: SeedGroup, stored: StoredRun, means: SeedMeans) -> None:
    """Log the data sets of a group, its settings as configuration.yaml, and the results of its seeds as seeds.csv."""
    import yaml

    client, data = experiment.client, {}
    for run in group.runs:
        if is_finished(folder := experiment.results / run.folder):
            settings = load_yaml((folder / "run.yaml").read_text(encoding="utf-8"))
            data |= {(item.dataset.name, item.dataset.digest): item for item in data_of(settings, experiment.results)}
    if data and not stored.data:
        client.log_inputs(stored.id, list(data.values()))
    settings = group.runs[0].model_dump(mode="json", exclude={"seed"})
    client.log_text(stored.id, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "configuration.yaml")
    rows = [[summary["seed"], summary["status"], *map(summary.get, IN_SUMMARY)] for summary in means.summaries]
    lines = [["seed", "status", *IN_SUMMARY.values()], *rows]
    texts = [",".join("" if value is None else str(value) for value in line) for line in lines]
    client.log_text(stored.id, "\n".join(texts) + "\n", "seeds.csv")


def _replace_parent(experiment: Experiment, group: SeedGroup, old: StoredRun) -> StoredRun:
    """Replace the parent run by a new one, move its children to the new one, and return the new one."""
    del experiment.stored[group.job_key]
    new = parent_of(experiment, group)
    assert new is not None
    for key, child in list(experiment.stored.items()):
        if child.parent == old.id:
            experiment.client.set_tag(child.id, PARENT, new)
            experiment.stored[key] = replace(child, parent=new)
    experiment.client.delete_run(old.id)
    return experiment.stored[group.job_key]


def _mean_points(means: SeedMeans, end: int) -> list[Metric]:
    from mlflow.entities import Metric

    points = [Metric(key, value, end, step) for key, step, value in means.curves]
    bars = [Metric(key, value, end, 0) for key, value in means.values.items()]  # MLflow draws bars only at step 0
    return points + bars

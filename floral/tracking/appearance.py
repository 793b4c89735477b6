"""Decide how MLflow shows the runs of a suite: their names, colours and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from floral.config.run import Run
from floral.core.nested import dotted_keys
from floral.runs.seed_groups import group_by_seed


@dataclass(frozen=True, kw_only=True)
class Label:
    """How a run is called, and its colour in MLflow's charts, such as `#3f83c9`. None: MLflow chooses the colour."""

    configuration: str
    """The task, and the settings that tell it from other configurations of this task."""
    method: str
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How MLflow shows the runs of a suite.

    `params` has the settings that differ within the suite, by their dotted names. Only they are parameters in MLflow,
    so that its tables show no column of equal values. `labels` maps run folders to labels.
    """

    params: frozenset[str] = frozenset()
    labels: Mapping[Path, Label] = field(default_factory=dict)

    def label(self, run: Run) -> Label:
        return self.labels.get(run.folder) or Label(configuration=run.task.name, method=run.variant.name)


def appearance_of(runs: Iterable[Run], labels: Mapping[Path, Label] | None = None) -> Appearance:
    """Return the appearance of a suite with these runs. Without labels, runs are called by their task and variant."""
    runs = list(runs)
    groups = group_by_seed(runs).values()
    settings = [_settings(group.runs[0]) for group in groups]
    names = {name for values in settings for name in values}
    differing = {
        name for name in names if any(values.get(name, ...) != settings[0].get(name, ...) for values in settings)
    }
    seeds = {"seed"} if len({run.seed for run in runs}) > 1 else set()
    return Appearance(params=frozenset(differing | seeds), labels=labels or {})


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings of a run by their dotted names, without its seed, titles and descriptions."""
    settings = run.model_dump(mode="json", exclude={"seed": True, "task": {"title"}})
    settings["variant"] = {key: settings["variant"][key] for key in ("name", "method", "params")}
    return dotted_keys(settings)

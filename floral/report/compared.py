"""The configurations (tasks with their settings) and the methods of a suite, each with a unique id and a title."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from floral.config import catalogue
from floral.config.run import Run
from floral.config.schema.method import Variant
from floral.config.schema.task import Task
from floral.config.searches import search_space
from floral.core.nested import dotted_keys
from floral.data.samples import evaluated_on_training

CHANGES = ("task_changes", "method_changes", "switches")
"""Columns of summary.parquet: what a run changes in the files of its task, variant and fidelity. JSON, {} for nothing.

Tuned values count as changes of the variant."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A task with all its settings. Methods are compared only within a configuration.

    The setting `fidelity` is `official` (as in the paper's published code) or `corrected` (the paper with corrections).
    The main table has separate columns for each configuration.
    """

    id: str
    title: str
    task: Task
    fidelity: str
    diverged_runs: Literal["dropped", "reported"]
    on_training: bool
    """Whether clients are evaluated on their training samples, as the published code of some tasks does."""
    rules: Mapping[str, Any]
    """The value of every fidelity switch."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """The fidelity switches that the suite sets to another value than this fidelity has."""

    @property
    def label(self) -> str:
        """The name of the task, and the settings that tell it from other configurations of this task."""
        return f"{self.task.name}{self.title.removeprefix(self.task.title)}"

    @property
    def metric(self) -> str:
        """The metric of the comparison: `accuracy` (higher is better), or `loss` for regression (lower is better)."""
        return "loss" if self.task.loss == "mse" else "accuracy"


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A method with all its parameter values. It has one row in the main table, and one colour in all figures."""

    id: str
    title: str
    variant: Variant
    tuned: bool = False
    """Whether its learning rates and hyper-parameters were tuned, for each task separately."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """The hyper-parameters that the suite sets to other values than config/methods has, without tuned ones."""


def configuration_key(run: Run) -> Hashable:
    return run.task.model_dump_json(), run.fidelity.model_dump_json()


def method_key(run: Run) -> Hashable:
    """Return a key that is equal for all runs of the same method, on all tasks and seeds.

    Two runs have the same method if their variants and parameter values are equal. Tuned values may differ between
    tasks.
    """
    tuned = run.own_rates is not None
    return run.variant.name, "tuned" if tuned else json.dumps(dict(run.variant.params), sort_keys=True)


def configurations(runs: list[Run]) -> dict[Hashable, Configuration]:
    """Return the configurations (tasks with their settings) of these runs, as `configuration_key` → configuration."""
    firsts: dict[Hashable, Run] = {}
    for run in runs:
        firsts.setdefault(configuration_key(run), run)
    facts = {key: _configuration_facts(run) for key, run in firsts.items()}
    ids = _unique_ids(facts, {key: run.task.name for key, run in firsts.items()})
    result = {}
    for key, run in firsts.items():
        suffix, differs = ids[key]
        title = f"{run.task.title}, {differs}" if differs else run.task.title
        result[key] = Configuration(
            id=run.task.name + suffix, title=title, task=run.task, fidelity=run.fidelity.name,
            diverged_runs=run.fidelity["diverged_runs"], on_training=evaluated_on_training(run),
            rules=run.fidelity.switches, switches=_changed_switches(run),
        )  # fmt: skip
    return result


def methods(runs: list[Run]) -> dict[Hashable, MethodRow]:
    """Return the methods of these runs as `method_key` → method, in the order of their first runs.

    The title of a tuned variant contains the word `tuned` only if the suite also runs the variant untuned.
    """
    firsts: dict[Hashable, Run] = {}
    for run in runs:
        firsts.setdefault(method_key(run), run)
    tuned = {key for key, run in firsts.items() if run.own_rates is not None}
    untuned_names = {run.variant.name for key, run in firsts.items() if key not in tuned}
    called_tuned = {key for key in tuned if firsts[key].variant.name in untuned_names}
    names = {key: run.variant.name + ("-tuned" if key in called_tuned else "") for key, run in firsts.items()}
    defaults = {key: _in_catalogue(run)[1].params for key, run in firsts.items()}
    facts = {key: {} if key in tuned else _changed_values(firsts[key].variant.params, defaults[key]) for key in firsts}
    ids = _unique_ids(facts, names)
    result = {}
    for key, run in firsts.items():
        suffix, differs = ids[key]
        title = ", ".join(filter(None, (run.variant.title, "tuned" if key in called_tuned else "", differs)))
        result[key] = MethodRow(
            id=names[key] + suffix, title=title, variant=run.variant, tuned=key in tuned,
            changes=_changed_by_suite(run, defaults[key]),
        )  # fmt: skip
    return result


def change_columns() -> Callable[[Run], dict[str, str]]:
    """Return a function that lists which settings of a run differ from the files in config/.

    The function takes a run, and returns column → text for the columns CHANGES of summary.parquet: the changed settings
    of the task, of the method and of the fidelity. A text is JSON, such as {"rounds": 20}.
    """
    cache: dict[Hashable, dict[str, str]] = {}

    def columns(run: Run) -> dict[str, str]:
        params = json.dumps(dict(run.variant.params), sort_keys=True)
        key = configuration_key(run), run.variant.name, params, run.own_rates
        if key not in cache:
            rates = {} if run.own_rates is None else {"rates": run.own_rates.model_dump()}
            default_task, default_variant = _in_catalogue(run)
            task = _changed_values(run.task.model_dump(), default_task.model_dump())
            method = _changed_values({**run.variant.params, **rates}, default_variant.params)
            cache[key] = {
                name: json.dumps(values, sort_keys=True, default=str)
                for name, values in zip(CHANGES, (task, method, _changed_switches(run)), strict=True)
            }
        return cache[key]

    return columns


# ------------------------------------------------------------------------------------------ differences


def _in_catalogue(run: Run) -> tuple[Task, Variant]:
    """Return the task and the variant as the files in config/ have them; those of the run if no file has this name."""
    is_task, is_variant = run.task.name in catalogue.names("tasks"), run.variant.name in catalogue.variant_index()
    return (
        catalogue.task(run.task.name) if is_task else run.task,
        catalogue.variant(run.variant.name) if is_variant else run.variant,
    )


def _configuration_facts(run: Run) -> dict[str, Any]:
    """Return the settings that distinguish a run's task from the same task in other runs, as name → value.

    They are the name of the fidelity (`official` or `corrected`), the fidelity switches that the suite changes, and the
    values that differ from the task's file.
    """
    task, default = (task.model_dump(exclude={"title"}) for task in (run.task, _in_catalogue(run)[0]))
    return {"fidelity": run.fidelity.name, **_changed_switches(run), **_changed_values(task, default)}


def _changed_by_suite(run: Run, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that the suite sets to other values than `defaults`, without those that are tuned."""
    tuned = () if run.own_rates is None else search_space(run.variant.name).values
    changes = _changed_values(run.variant.params, defaults).items()
    return {name: value for name, value in changes if name not in tuned}


def _changed_switches(run: Run) -> dict[str, Any]:
    defaults = catalogue.fidelity(run.fidelity.name).switches
    return {name: value for name, value in run.fidelity.switches.items() if defaults.get(name) != value}


def _changed_values(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults, by dotted path (such as `partition.alpha`).

    A path that is in `defaults` but not in `values` gets the value None.
    """
    now, before = (
        {name: value for name, value in dotted_keys(nested).items() if value != {}} for nested in (values, defaults)
    )
    return {name: now.get(name) for name in {**before, **now} if now.get(name) != before.get(name)}


def _unique_ids(
    facts: Mapping[Hashable, Mapping[str, Any]], names: Mapping[Hashable, str]
) -> dict[Hashable, tuple[str, str]]:
    """Return two texts for each key: a suffix that makes its name unique, and the facts that distinguish it.

    Keys can share a name, such as two configurations of one task. The first of them gets no suffix, the next ones get
    `-2`, `-3` and so on. Facts that all keys with this name share are left out.
    """
    ids = {}
    for name in dict.fromkeys(names.values()):
        keys = [key for key in facts if names[key] == name]
        shared = set.intersection(*({str(item) for item in facts[key].items()} for key in keys))
        for position, key in enumerate(keys):
            differs = ", ".join(
                f"{path} {value}" for path, value in facts[key].items() if str((path, value)) not in shared
            )
            ids[key] = (f"-{position + 1}" if position else "", differs)
    return ids

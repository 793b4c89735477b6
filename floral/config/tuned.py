"""Tuning: the search of a variant on a task, and the committed values that searches chose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from floral.config import catalogue, paths
from floral.config.hashing import hash8
from floral.config.reading import ConfigError, parse, read, suggest
from floral.config.run import RESULTS_VERSION, Run
from floral.config.schema.base import Frozen
from floral.config.schema.method import Variant
from floral.config.schema.suite import Fidelity
from floral.config.schema.task import Task
from floral.config.schema.tuning import Configuration, Rates, SearchFile, Space, Tuned, Tuning
from floral.config.search_space import RATES, axes_of, configurations


class Untuned(ConfigError):
    """A suite asks for tuned values that nobody has committed, or that were found in another search."""


class Search(Frozen):
    """The search for a variant's values on a task: one job of the tune stage, 1 + `budget` runs per tuning seed."""

    task: Task
    """With the search's rounds, so that suites of another length share it."""
    variant: Variant
    fidelity: Fidelity
    tuning: Tuning
    axes: Mapping[str, tuple[Any, ...]]

    @property
    def configurations(self) -> list[Configuration]:
        return configurations(self.axes)

    def trial(self, seed: int, configuration: Configuration | None = None) -> Run:
        """The run of a configuration, or of the untuned values."""
        run = Run(task=self.task, variant=self.variant, seed=seed, fidelity=self.fidelity)
        return run if configuration is None else _with_values(run, configuration.rates, configuration.params)

    def references(self) -> list[Run]:
        """The runs of the untuned values, one for each seed."""
        return [self.trial(seed) for seed in self.tuning.seeds]

    @property
    def digest(self) -> str:
        """Of all that decides what is found: the untuned run and its partitions, the grid and the seeds."""
        runs = self.references()
        return hash8({
            "run": runs[0].identity(), "partitions": [run.partition.hash8 for run in runs],
            "axes": {name: list(values) for name, values in self.axes.items()}, "seeds": self.tuning.seeds,
            "results_version": RESULTS_VERSION,
        })  # fmt: skip

    @property
    def folder(self) -> Path:
        """results/tune/<task>/<variant>/<digest>, relative to the results' parent."""
        return Path("tune") / self.task.name / self.variant.name / self.digest


def tune_command(*suites: str) -> str:
    """What finds and writes the values of some suites; typed in the project's root."""
    named = suites[0] if len(suites) == 1 else f'"[{", ".join(suites)}]"'
    return f"snakemake --profile local tuned --config suite={named}"


def tuned_path(task_name: str) -> Path:
    return paths.CONFIG / "tuned" / f"{task_name}.yaml"


@cache
def tuned_values(task_name: str) -> dict[str, Tuned]:
    """variant → its committed values on a task."""
    path = tuned_path(task_name)
    if not path.exists():
        return {}
    values = read(path)
    for name in values:
        if name not in (known := catalogue.variant_index()):
            raise suggest("variant", name, known, str(path))
    return {name: parse(Tuned, entry, f"{path}: {name}") for name, entry in values.items()}


@cache
def tuning() -> Tuning:
    path = paths.CONFIG / "tuning.yaml"
    parsed: Tuning = parse(Tuning, read(path), str(path))
    for name in parsed.more_seeds:
        if name not in (known := catalogue.names("tasks")):
            raise suggest("task", name, known, f"{path}: more_seeds")
    return parsed


@cache
def search_space(variant_name: str) -> Space:
    """The space of a variant, its own or its method's, checked against the method's parameters and the budget.

    Raises:
        ConfigError: there is none, it names or holds what the method does not take, or has another number of points.
    """
    method = catalogue.variant_index()[variant_name]
    path = paths.CONFIG / "search" / f"{method}.yaml"
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file, so nothing says what is tuned of {method!r}; write it ({{}} for learning rates "
            f"alone), or name {variant_name!r} in a block without `tuned: true`"
        )
    file: SearchFile = parse(SearchFile, read(path), str(path))
    for name in file.variants:
        if name not in (known := catalogue.method_file(method).variants):
            raise suggest("variant", name, known, f"{path}: variants")
    own = variant_name in file.variants
    space = file.variants.get(variant_name, file)
    _check_space(space, variant_name, f"{path}: variants.{variant_name}" if own else str(path), own)
    return space


def _check_space(space: Space, variant_name: str, where: str, own: bool) -> None:
    """Raises ConfigError, see `search_space`; `own`: the space is the variant's, not its method's."""
    file = catalogue.method_file(catalogue.variant_index()[variant_name])
    for key, values in space.values.items():
        if key not in file.parameters:
            raise suggest("parameter", key, file.parameters, f"{where}: values")
        if key in file.variants[variant_name].set and not own:
            raise ConfigError(
                f"{where}: values: {key} is what {variant_name!r} sets; give it a space of its own under variants"
            )
        for value in values:
            try:
                file.parameters[key].accept(value)
            except ValueError as error:
                raise ConfigError(f"{where}: values: {key}: {error} ({file.parameters[key].doc})") from None
        if len(set(values)) < len(values):
            raise ConfigError(f"{where}: values: {key}: {list(values)} holds a value twice")
    sizes = {"router_lr": space.router_lr, **{key: len(v) for key, v in space.values.items()}}
    if (budget := tuning().budget) % (count := math.prod(sizes.values())):
        product = " × ".join(f"{size} of {key}" for key, size in sizes.items() if size > 1)
        raise ConfigError(
            f"{where}: {product} make {count} combinations, which cannot share the {budget} configurations of every "
            f"variant ({paths.CONFIG}/tuning.yaml) equally"
        )


def search_for(run: Run, where: str) -> Search:
    """The search for the values of a run's task and variant; `where` is the suite's file."""
    task, rule = run.task, tuning().of(run.task.name)
    if run.fidelity["validation"] == "none" or task.partition.validation == 0:
        raise ConfigError(
            f"{where}: tuned: {task.name} holds no rows out (fidelity {run.fidelity.name}, switch validation: "
            f"{run.fidelity['validation']}; the task's partition.validation: {task.partition.validation:g}), and test "
            "rows must not choose anything; leave `tuned` out, or use fidelity: corrected"
        )
    space, rates = search_space(run.variant.name), run.rates
    for name in RATES:
        if (name == "lr" or space.router_lr > 1) and getattr(rates, name) == 0:
            raise ConfigError(f"{where}: tuned: {task.name} has {name}: 0, and every multiple of 0 is 0")
    short = {"rounds": rule.rounds(task.rounds), "eval_every": None}
    return Search(
        task=task.model_copy(update=short), variant=run.variant, fidelity=run.fidelity, tuning=rule,
        axes=axes_of(space, rule, rates),
    )  # fmt: skip


def is_current(search: Search) -> bool:
    """Whether its values are committed, so that it need not be made again."""
    entry = tuned_values(search.task.name).get(search.variant.name)
    return entry is not None and entry.search == search.digest


def with_tuned_values(search: Search, run: Run) -> Run:
    """The run with its committed values.

    Raises:
        Untuned: there are none, or they were found in another search (the message ends before the variant's name).
    """
    name, path = search.variant.name, tuned_path(search.task.name)
    entry = tuned_values(search.task.name).get(name)
    if entry is None:
        raise Untuned(f"{path}: no tuned values yet")
    if entry.search != search.digest:
        raise Untuned(
            f"{path}: stale, for the task, the method's defaults, its search space or tuning.yaml has changed since"
        )
    if Configuration(rates=entry.rates, params=entry.params) not in search.configurations:
        raise ConfigError(
            f"{path}: {name}: rates, params: none of the {entry.budget} configurations of its search; do not edit what "
            "a search has chosen, tune again"
        )
    return _with_values(run, entry.rates, entry.params)


def _with_values(run: Run, rates: Rates, params: Mapping[str, Any]) -> Run:
    tuned = run.variant.model_copy(update={"params": {**run.variant.params, **params}})
    return run.model_copy(update={"variant": tuned, "own_rates": rates})

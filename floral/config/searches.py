"""Describe the hyper-parameter search for a variant on a task: the values that it tries, and its runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from floral.config import catalogue, layers
from floral.config.hashing import hash8
from floral.config.reading import ConfigError, parse, suggest
from floral.config.run import RESULTS_VERSION, Run
from floral.config.schema.base import Frozen
from floral.config.schema.method import Variant
from floral.config.schema.suite import Fidelity
from floral.config.schema.task import Task
from floral.config.schema.tuning import Configuration, Rates, SearchFile, Space, Tuning, TuningFile
from floral.config.search_space import RATES, axes_of, configurations


class Search(Frozen):
    """A hyper-parameter search for one variant on one task. One job of the rule `tune` makes all its runs.

    For each tuning seed, it makes one run with the untuned values and one run with each hyper-parameter configuration.
    """

    task: Task = Field(
        description="Task with the number of rounds of tuning runs, whatever the number of rounds in the suite."
    )
    variant: Variant = Field(description="Variant with its hyper-parameters before tuning.")
    fidelity: Fidelity = Field(description="Fidelity of the runs.")
    tuning: Tuning = Field(description="Values of config/tuning.yaml for this task.")
    axes: Mapping[str, tuple[Any, ...]] = Field(description="Learning rate or hyper-parameter → the values to try.")

    @property
    def configurations(self) -> list[Configuration]:
        """The hyper-parameter configurations to try, in increasing order of the learning rate of model parameters."""
        return configurations(self.axes)

    def trial(self, seed: int, configuration: Configuration | None = None) -> Run:
        """Return a run of this search, with this seed and hyper-parameter configuration.

        If `configuration` is None, the run has the untuned values.
        """
        run = Run(task=self.task, variant=self.variant, seed=seed, fidelity=self.fidelity)
        return run if configuration is None else with_values(run, configuration.rates, configuration.params)

    def references(self) -> list[Run]:
        """Return the runs with the untuned values, one for each tuning seed."""
        return [self.trial(seed) for seed in self.tuning.seeds]

    @property
    def digest(self) -> str:
        """The hash of everything that determines the result of the search.

        The hash is computed from the run with untuned values, the partitions, the values to try and the tuning seeds.
        """
        runs = self.references()
        return hash8({
            "run": runs[0].identity(), "partitions": [run.partition.hash8 for run in runs],
            "axes": {name: list(values) for name, values in self.axes.items()}, "seeds": self.tuning.seeds,
            "results_version": RESULTS_VERSION,
        })  # fmt: skip

    @property
    def folder(self) -> Path:
        """The folder of the search, tune/<task>/<variant>/<digest>, as a path inside the results folder."""
        return Path("tune") / self.task.name / self.variant.name / self.digest


def search_for(run: Run, where: str) -> Search:
    """Return the hyper-parameter search for the task and variant of a run.

    `where` is the suite's file, which error messages name.

    Raises:
        ConfigError: the task has no validation samples, a learning rate is 0, or the search space is wrong.
    """
    task, rule = run.task, tuning(run.task.name)
    if run.fidelity["validation"] == "none" or task.partition.validation == 0:
        raise ConfigError(
            f"{where}: tuning needs validation samples, but {task.name} has no validation samples (the fidelity "
            f"switch `validation` is {run.fidelity['validation']}, and `partition.validation` is "
            f"{task.partition.validation:g}); "
            "remove the key `tuned`, or set `fidelity: corrected` and `partition.validation` above 0"
        )
    space, rates = search_space(run.variant.name), run.rates
    for name in RATES:
        if (name == "lr" or space.router_lr > 1) and getattr(rates, name) == 0:
            raise ConfigError(
                f"{where}: tuning tries multiples of the learning rate, but {task.name} has `{name}: 0`; set a "
                f"positive `{name}`, or remove the key `tuned`"
            )
    short = {"rounds": rule.rounds(task.rounds), "eval_every": None}
    return Search(
        task=task.model_copy(update=short), variant=run.variant, fidelity=run.fidelity, tuning=rule,
        axes=axes_of(space, rule, rates),
    )  # fmt: skip


def with_values(run: Run, rates: Rates, params: Mapping[str, Any]) -> Run:
    """Return a copy of the run with the learning rates `rates` and the hyper-parameters `params`."""
    variant = run.variant.model_copy(update={"params": {**run.variant.params, **params}})
    return run.model_copy(update={"variant": variant, "own_rates": rates})


@cache
def tuning_file() -> TuningFile:
    """Return the content of config/tuning.yaml.

    Raises:
        ConfigError: a value is wrong, or `tasks` names an unknown task.
    """
    path = layers.file("tuning.yaml")
    parsed: TuningFile = parse(TuningFile, layers.read("tuning.yaml"), str(path))
    for name in parsed.tasks:
        if name not in (tasks := catalogue.names("tasks")):
            raise suggest("task", name, tasks, f"{path}: tasks")
        parse(Tuning, parsed.keys_of(name), f"{path}: tasks.{name}")
    return parsed


@cache
def tuning(task_name: str) -> Tuning:
    """Return the rule by which all methods are tuned on a task, such as the number of configurations to try.

    Raises:
        ConfigError: a value is wrong, or `tasks` names an unknown task.
    """
    return parse(Tuning, tuning_file().keys_of(task_name), str(layers.file("tuning.yaml")))


@cache
def search_space(variant_name: str) -> Space:
    """Return the values that a search tries for a variant, from config/search/<method>.yaml.

    If the file has no separate entry for this variant, the values for the whole method are returned.

    Raises:
        ConfigError: the method has no file in config/search, the search space has a wrong parameter or value, or its
            number of combinations does not divide the budget.
    """
    method = catalogue.variant_index()[variant_name]
    path = layers.file(f"search/{method}.yaml")
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file, so the method {method!r} has no search space; write this file "
            f"(with the content {{}} to tune only learning rates), or move {variant_name!r} to a block of the suite "
            "without `tuned: true`"
        )
    file: SearchFile = parse(SearchFile, layers.read(f"search/{method}.yaml"), str(path))
    for name in file.variants:
        if name not in (variants := catalogue.method_file(method).variants):
            raise suggest("variant", name, variants, f"{path}: variants")
    separate = variant_name in file.variants
    space = file.variants.get(variant_name, file)
    _check_space(space, variant_name, f"{path}: variants.{variant_name}" if separate else str(path), separate)
    return space


def _check_space(space: Space, variant_name: str, where: str, separate: bool) -> None:
    """Raise ConfigError if a search space has a wrong value or does not fit the budget.

    The budget is the number of configurations that a search tries. The number of combinations in the search space must
    divide it. `separate` says that the search space is only for this variant and not for the whole method. `where` is
    the file and key that error messages name.
    """
    file = catalogue.method_file(catalogue.variant_index()[variant_name])
    for key, values in space.values.items():
        if key not in file.parameters:
            raise suggest("parameter", key, file.parameters, f"{where}: values")
        if key in file.variants[variant_name].set and not separate:
            raise ConfigError(
                f"{where}: values: {variant_name!r} has its own value of `{key}` in config/methods; give this "
                "variant a separate search space, under `variants` in this file"
            )
        for value in values:
            try:
                file.parameters[key].accept(value)
            except ValueError as error:
                raise ConfigError(
                    f"{where}: values: {key}: {error} (meaning of `{key}`: {file.parameters[key].doc})"
                ) from None
        if len(set(values)) < len(values):
            raise ConfigError(f"{where}: values: {key}: {list(values)} contains a value twice; list each value once")
    sizes = {"router_lr": space.router_lr, **{key: len(values) for key, values in space.values.items()}}
    if (budget := tuning_file().budget) % (count := math.prod(sizes.values())):
        product = " × ".join(f"{size} values of {key}" for key, size in sizes.items() if size > 1)
        raise ConfigError(
            f"{where}: {product} make {count} combinations, but {count} does not divide the `budget: {budget}` of "
            f"{layers.file('tuning.yaml')}; list fewer or more values"
        )

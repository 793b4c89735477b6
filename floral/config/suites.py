"""List the runs and the hyper-parameter searches of a suite."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from floral.config import catalogue, data_sets, layers, paths
from floral.config.reading import ConfigError, suggest
from floral.config.run import Run
from floral.config.schema.data import CustomData
from floral.config.schema.suite import Block
from floral.config.searches import Search, search_for, search_space, tuning, tuning_file
from floral.config.tuned import Untuned, tune_command, with_tuned_values
from floral.core.precision import Precision


def suite_runs(
    suite_name: str,
    tasks: Iterable[str] | None = None,
    variants: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    precision: Precision = "fp32",
    *,
    with_tuned: bool = True,
) -> list[Run]:
    """Return the runs of a suite in the order of its file.

    If `tasks`, `variants` or `seeds` are given, only the runs of these tasks, variants or seeds are returned. Without
    `with_tuned`, runs keep their untuned values, which is enough for what tuning does not change: data and partitions.

    Raises:
        ConfigError: a name is unknown, or no run is selected.
        Untuned: some of these runs need tuned values that are not yet in config/tuned.
    """
    narrowed = {"task": tasks, "variant": variants, "seed": seeds}
    selected = {axis: None if values is None else set(values) for axis, values in narrowed.items()}
    runs: dict[Path, Run] = {}
    untuned: dict[str, list[str]] = {}
    values_in_suite: dict[str, set[Any]] = {axis: set() for axis in selected}
    for block, where, first in _blocks(suite_name):
        block_seeds = []
        for seed in block.seeds:
            key = {"task": first.task.name, "variant": first.variant.name, "seed": seed}
            for axis, value in key.items():
                values_in_suite[axis].add(value)
            if all(values is None or key[axis] in values for axis, values in selected.items()):
                block_seeds.append(seed)
        try:
            tuned = with_tuned and block.tuned and block_seeds
            template = with_tuned_values(search_for(first, where), first) if tuned else first
        except Untuned as reason:
            untuned.setdefault(str(reason), []).append(first.variant.name)
            continue
        template = template.model_copy(update={"precision": precision})
        for run in (template.model_copy(update={"seed": seed}) for seed in block_seeds):
            if runs.setdefault(run.folder, run).fidelity != run.fidelity:
                raise ConfigError(
                    f"{where}.switches: {run.task.name} {run.variant.name} seed {run.seed} is in two blocks that "
                    "differ only in fidelity switches that do not change this run; give both blocks the same switches"
                )
    for axis, values in selected.items():
        for value in sorted((values or set()) - values_in_suite[axis], key=str):
            raise suggest(axis, str(value), map(str, values_in_suite[axis]), f"suite {suite_name!r} ({axis}s)")
    if untuned:
        lines = [f"{reason}: {', '.join(dict.fromkeys(names))}" for reason, names in untuned.items()]
        raise Untuned("\n".join([*lines, f"tune with: {tune_command(suite_name)}"]))
    if not runs:
        raise ConfigError(
            f"suite {suite_name!r}: no run has a selected task, a selected variant and a selected seed at once; remove "
            "the selection of tasks, of variants or of seeds"
        )
    return list(runs.values())


def suite_searches(
    suite_name: str, tasks: Iterable[str] | None = None, variants: Iterable[str] | None = None
) -> dict[Path, Search]:
    """Return the hyper-parameter searches that a suite needs, as a mapping from folder to search.

    The suite needs a search for each task and variant in its blocks with `tuned: true`. If `tasks` or `variants` is
    given, only searches for these tasks or variants are returned.

    Raises:
        ConfigError: a variant has no search space that fits the budget, or a task has no validation samples.
    """
    searches: dict[tuple[str, str], Search] = {}
    for block, where, first in _blocks(suite_name):
        key = first.task.name, first.variant.name
        selected = all(names is None or name in names for name, names in zip(key, (tasks, variants), strict=True))
        if block.tuned and selected:
            search = search_for(first, where)
            if searches.setdefault(key, search) != search:
                raise ConfigError(
                    f"{where}.tuned: {' '.join(key)} is in two blocks with different values, but config/tuned can "
                    "hold only one entry for a task and variant; remove one of the blocks"
                )
    return {search.folder: search for search in searches.values()}


def custom_data(name: str, suite_name: str | None = None) -> CustomData:
    """Return the custom data (the user's own files) with this name.

    `name` is the name of a task with custom data, or of the folder in results/data that stores the data. If
    `suite_name` is given, only the tasks of this suite are searched, otherwise all tasks.

    Raises:
        ConfigError: no task has custom data with this name.
    """
    if suite_name is not None:
        tasks = [first.task for _, _, first in _blocks(suite_name)]
    else:
        any_task = name.startswith(data_sets.CUSTOM_PREFIX)
        tasks = [catalogue.task(task) for task in catalogue.names("tasks") if any_task or task == name]
    for task in tasks:
        if isinstance(task.data, CustomData) and name in (task.name, data_sets.stored_data(task.data)):
            return task.data
    raise suggest("data set", name, data_sets.data_lock(), f"{paths.CONFIG_FOLDER}/data.lock")


def _blocks(suite_name: str) -> Iterator[tuple[Block, str, Run]]:
    """Yield three values for each task and variant in each block of a suite.

    A block lists tasks, variants and seeds. The three values are the block, its place in a YAML file, and a run with
    this task and variant. The run has the first seed of the block and untuned values.
    """
    blocks = list(_blocks_of_suites(suite_name))
    if any(block.tuned for block, _ in blocks):
        _check_seeds((block for block, _ in blocks), str(layers.file(f"suites/{suite_name}.yaml")))
    all_tasks = set(catalogue.names("tasks"))
    for block, where in blocks:
        fidelity = catalogue.fidelity(block.fidelity, block.switches, f"{where}.switches")
        tasks = catalogue.benchmarks() if block.tasks == "all" else block.tasks
        for task_name, variant_name in itertools.product(tasks, block.variants):
            if task_name not in all_tasks:
                raise suggest("task", task_name, all_tasks, f"{where}.tasks")
            if variant_name not in (index := catalogue.variant_index()):
                raise suggest("variant", variant_name, index, f"{where}.variants", catalogue.published_names())
            run = Run(
                task=catalogue.task(task_name, block.task, f"{where}.task" if block.task else None),
                variant=catalogue.variant(variant_name, block.method, f"{where}.method"),
                seed=block.seeds[0],
                fidelity=fidelity,
            )
            check_oracle(run, f"{where}.variants")
            if block.tuned and (both := sorted(block.method.keys() & search_space(variant_name).values.keys())):
                raise ConfigError(
                    f"{where}.method: tuning chooses {', '.join(both)} for {variant_name!r}; remove the same "
                    "keys from `method`"
                )
            yield block, where, run


def check_oracle(run: Run, where: str) -> None:
    """Raise ConfigError if a variant reads the true clusters, but its task lets methods assume another number."""
    if run.variant.oracle and run.task.assumed_clusters is not None:
        raise ConfigError(
            f"{where}: {run.variant.name!r} reads the true clusters, so it cannot assume another number of clusters "
            f"(`assumed_clusters: {run.task.assumed_clusters}`); choose another variant, or remove this key of the task"
        )


def _blocks_of_suites(suite_name: str, including: tuple[str, ...] = ()) -> Iterator[tuple[Block, str]]:
    """Yield each block of a suite (a list of tasks, variants and seeds), with its place: the file and the block's key.

    Blocks of included suites come first. `including` are the names of the suites that include this suite, directly or
    through others. They serve to detect that a suite includes itself.
    """
    included_by = f"{layers.file(f'suites/{including[-1]}.yaml')}: suites" if including else None
    suite, where = catalogue.suite(suite_name, included_by), layers.file(f"suites/{suite_name}.yaml")
    if suite_name in including:
        circle = " → ".join((*including, suite_name))
        raise ConfigError(
            f"{where}: these suites include each other in a circle: {circle}; remove one of these names from `suites`"
        )
    for name in suite.suites:
        yield from _blocks_of_suites(name, (*including, suite_name))
    for number, block in enumerate(suite.runs):
        yield block, f"{where}: runs.{number}"


def _check_seeds(blocks: Iterable[Block], where: str) -> None:
    """Raise ConfigError if one of these blocks has a tuning seed.

    Tuning seeds are the seeds of the runs that serve to choose the tuned values. Results with these seeds would be too
    good, so a suite must not report them. `where` is the file of the suite, which the error message names.
    """
    rules = (tuning_file(), *map(tuning, tuning_file().tasks))
    tuning_seeds = {seed for rule in rules for seed in rule.seeds}
    if both := sorted({seed for block in blocks for seed in block.seeds} & tuning_seeds):
        raise ConfigError(
            f"{where}: seeds: {both} are tuning seeds ({layers.file('tuning.yaml')}), whose runs choose the tuned "
            "values, so a suite with `tuned: true` must not report them; use other seeds"
        )

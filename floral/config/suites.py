"""The runs and the searches of a suite."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from floral.config import catalogue, data_sets, paths
from floral.config.reading import ConfigError, suggest
from floral.config.run import Run
from floral.config.schema.data import CustomData
from floral.config.schema.suite import Block
from floral.config.tuned import Search, Untuned, search_for, search_space, tune_command, tuning, with_tuned_values


def suite_runs(
    suite_name: str,
    tasks: Iterable[str] | None = None,
    variants: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
) -> list[Run]:
    """All runs of a suite, in its order; `tasks`, `variants` and `seeds` narrow it.

    Raises:
        ConfigError: a name is unknown, or the narrowing leaves nothing.
        Untuned: some of these runs need tuned values that are not there.
    """
    wanted = {"task": _wanted(tasks), "variant": _wanted(variants), "seed": _wanted(seeds)}
    found: dict[Path, Run] = {}
    untuned: dict[str, list[str]] = {}
    seen: dict[str, set[Any]] = {key: set() for key in wanted}
    for block, where, first in _blocks(suite_name):
        asked = []
        for seed in block.seeds:
            key = {"task": first.task.name, "variant": first.variant.name, "seed": seed}
            for axis, value in key.items():
                seen[axis].add(value)
            if all(chosen is None or key[axis] in chosen for axis, chosen in wanted.items()):
                asked.append(seed)
        try:
            like = with_tuned_values(search_for(first, where), first) if block.tuned and asked else first
        except Untuned as reason:
            untuned.setdefault(str(reason), []).append(first.variant.name)
            continue
        for run in (like.model_copy(update={"seed": seed}) for seed in asked):
            if found.setdefault(run.folder, run).fidelity != run.fidelity:
                raise ConfigError(
                    f"{where}: switches: {run.task.name} {run.variant.name} seed {run.seed} stands in two blocks that"
                    " differ in report-only switches alone; give both the same"
                )
    for axis, values in wanted.items():
        for value in sorted((values or set()) - seen[axis], key=str):
            raise suggest(axis, str(value), map(str, seen[axis]), f"suite {suite_name!r} ({axis}s)")
    if untuned:
        lines = [f"{reason}: {', '.join(dict.fromkeys(names))}" for reason, names in untuned.items()]
        raise Untuned("\n".join([*lines, f"tune with: {tune_command(suite_name)}"]))
    if not found:
        raise ConfigError(f"suite {suite_name!r}: no run has these tasks, variants and seeds together")
    return list(found.values())


def _blocks(suite_name: str) -> Iterator[tuple[Block, str, Run]]:
    """Every block's tasks × variants: the block, where it stands, and the untuned run of its first seed."""
    blocks = list(_blocks_of_suites(suite_name))
    if any(block.tuned for block, _ in blocks):
        _check_apart((block for block, _ in blocks), f"{paths.CONFIG}/suites/{suite_name}.yaml")
    for block, where in blocks:
        rules = catalogue.fidelity(block.fidelity, block.switches, f"{where}: switches")
        tasks = catalogue.benchmarks() if block.tasks == "all" else block.tasks
        for task_name, variant_name in itertools.product(tasks, block.variants):
            run = Run(
                task=catalogue.task(task_name, block.task, where if block.task else None),
                variant=catalogue.variant(variant_name, block.method, f"{where}: method"),
                seed=block.seeds[0],
                fidelity=rules,
            )
            if run.variant.oracle and run.task.assumed_clusters is not None:
                raise ConfigError(
                    f"{where}: variants: {variant_name!r} reads the true clusters, of which it is told another number "
                    f"(assumed_clusters: {run.task.assumed_clusters}); leave the variant out"
                )
            if block.tuned and (both := sorted(block.method.keys() & search_space(variant_name).values.keys())):
                raise ConfigError(
                    f"{where}: method: {', '.join(both)}: tuning chooses it for {variant_name!r}; leave it out"
                )
            yield block, where, run


def _blocks_of_suites(suite_name: str, within: tuple[str, ...] = ()) -> Iterator[tuple[Block, str]]:
    """The blocks of a suite, and before them those of the suites that it names; each with the file it stands in."""
    chosen, where = catalogue.suite(suite_name), f"{paths.CONFIG}/suites/{suite_name}.yaml"
    if suite_name in within:
        raise ConfigError(f"{where}: suites: {' → '.join((*within, suite_name))}: a suite cannot be a part of itself")
    for name in chosen.suites:
        yield from _blocks_of_suites(name, (*within, suite_name))
    for block in chosen.runs:
        yield block, where


def _wanted(values: Iterable[Any] | None) -> set[Any] | None:
    return None if values is None else set(values)


def suite_searches(
    suite_name: str, tasks: Iterable[str] | None = None, variants: Iterable[str] | None = None
) -> dict[Path, Search]:
    """The searches that a suite's blocks with `tuned: true` rest on, by folder; `tasks` and `variants` narrow them.

    Raises:
        ConfigError: one of them cannot be made: no search space, none of the budget's size, no rows held out.
    """
    found: dict[tuple[str, str], Search] = {}
    for block, where, first in _blocks(suite_name):
        key = first.task.name, first.variant.name
        if block.tuned and all(some is None or name in some for name, some in zip(key, (tasks, variants), strict=True)):
            made = search_for(first, where)
            if found.setdefault(key, made) != made:
                raise ConfigError(
                    f"{where}: tuned: {' '.join(key)} stands in two blocks with other values; config/tuned has room for"
                    " one search of a task and variant"
                )
    return {one.folder: one for one in found.values()}


def _check_apart(blocks: Iterable[Block], where: str) -> None:
    """Raises ConfigError where a suite with tuned values reports on the seeds that chose them, of whatever task."""
    chose = {seed for seeds in (tuning().seeds, *tuning().more_seeds.values()) for seed in seeds}
    if both := sorted({seed for block in blocks for seed in block.seeds} & chose):
        raise ConfigError(
            f"{where}: seeds: {both} choose the tuned values ({paths.CONFIG}/tuning.yaml), so no suite with "
            "`tuned: true` may report on them"
        )


def custom_data(name: str, suite_name: str | None = None) -> CustomData:
    """A task's own data by the task's name, or by the name under which they are stored; as a suite sets them, if given.

    Raises:
        ConfigError: no task of this name has data of its own, or none has data stored so.
    """
    if suite_name is not None:
        tasks = [first.task for _, _, first in _blocks(suite_name)]
    else:
        known = catalogue.names("tasks")
        tasks = [catalogue.task(one) for one in known if one == name or name.startswith(data_sets.CUSTOM_PREFIX)]
    for one in tasks:
        if isinstance(one.data, CustomData) and name in (one.name, data_sets.stored_data(one.data)):
            return one.data
    raise suggest("data set", name, data_sets.data_lock(), f"{paths.CONFIG}/data.lock")

"""Shell commands that the page shows: to finish the suite's runs, or to report only the finished runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.suites import suite_runs


def command(suite_name: str, runs: Iterable[Run], allow_missing: bool = False) -> str:
    """Return the shell command that finishes these runs and builds their report again.

    Readers run it in the project's root folder.
    """
    runs = list(runs)
    precision = "" if runs[0].precision == "fp32" else f" precision={runs[0].precision}"
    allowing = " allow_missing=true" if allow_missing else ""
    axes = [f' {axis}="[{",".join(map(str, values))}]"' for axis, values in narrowing(suite_name, runs).items()]
    return f"snakemake --profile local --config suite={suite_name}{''.join(axes)}{precision}{allowing}"


def partial_command(suite_name: str, runs: Iterable[Run]) -> str:
    """Return the shell command that reports these runs but leaves out the unfinished ones."""
    runs = list(runs)
    precision = "" if runs[0].precision == "fp32" else f" --precision {runs[0].precision}"
    axes = [f" --{axis} {' '.join(map(str, values))}" for axis, values in narrowing(suite_name, runs).items()]
    return f"floral report {suite_name} --partial{''.join(axes)}{precision}"


def narrowing(suite_name: str, runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Return the shortest choice of tasks, variants and seeds that selects exactly these runs of a suite.

    For example, {"seeds": [0, 1]} means all tasks and variants of the suite, but only these two seeds. The choice {}
    means the whole suite. It is also returned if no choice gives exactly these runs.
    """
    by_folder = {run.folder: run for run in runs}
    precision = next(iter(by_folder.values())).precision
    values = {
        "tasks": list(dict.fromkeys(run.task.name for run in by_folder.values())),
        "variants": list(dict.fromkeys(run.variant.name for run in by_folder.values())),
        "seeds": list(dict.fromkeys(run.seed for run in by_folder.values())),
    }
    for size in range(len(values) + 1):
        for axes in itertools.combinations(values, size):
            choice = {axis: values[axis] for axis in axes}
            try:
                selected = suite_runs(suite_name, **choice, precision=precision)
            except ConfigError:  # a task, variant or seed is not in this suite
                continue
            if len(selected) == len(by_folder) and {run.folder for run in selected} == by_folder.keys():
                return choice
    return {}

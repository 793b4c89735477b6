"""Runs whose data are not there: which they are, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.task import Task
from floral.config.searches import Search
from floral.core.units import run_count
from floral.runs.state import is_finished

NOTE = "missing.txt"
"""In the folder of a data set: why it could not be fetched."""


def without_data(task: Task, results: Path) -> str | None:
    """The file that a task lacks and the remedy; None where its data are there, or it needs none."""
    if is_there(task, results):
        return None
    if isinstance(task.data, CustomData) and (why := data_sets.why_unreadable(task.data)):
        return f"{why}; remedy: {data_sets.CUSTOM_ADVICE}"
    name = stored_name(task)
    note = results / "data" / name / NOTE
    if not note.exists():
        return f"{name}: not fetched yet; remedy: floral fetch {name}"
    first, *others = note.read_text(encoding="utf-8").splitlines()
    remedies = [line.strip() for line in others if line.strip().startswith("remedy: ")]
    return "; ".join([first, *remedies])


Suites = Mapping[str, list[Run]]
Searches = Mapping[str, tuple[str, Search]]
"""As plan.Settings has them."""


def tasks(suites: Suites, searches: Searches) -> list[Task]:
    return [run.task for runs in suites.values() for run in runs] + [search.task for _, search in searches.values()]


def leave_out(suites: Suites, searches: Searches, results: Path) -> tuple[Suites, Searches, list[str]]:
    """What can be made of all that was asked for, and a line for each reason why the rest cannot.

    Raises:
        ConfigError: no run of a suite is left.
    """
    parts = {name: split(runs, results) for name, runs in suites.items()}
    made = {name: kept for name, (kept, _) in parts.items()}
    lines = [f"suite {name}: {line}" for name, (_, lost) in parts.items() for line in lost]
    return made, {at: one for at, one in searches.items() if without_data(one[1].task, results) is None}, lines


def split(runs: Iterable[Run], results: Path) -> tuple[list[Run], list[str]]:
    """The runs that are finished or can be made, and a line for each reason why the others cannot.

    Raises:
        ConfigError: none of them can be made.
    """
    kept: list[Run] = []
    lost: dict[str, list[Run]] = {}
    for run in runs:
        why = None if is_finished(results / run.folder) else without_data(run.task, results)
        (kept if why is None else lost.setdefault(why, [])).append(run)
    lines = [
        f"data missing: {why} ({run_count(len(of))} left out: {', '.join(dict.fromkeys(run.task.name for run in of))})"
        for why, of in lost.items()
    ]
    if not kept:
        raise ConfigError("\n".join(["no run is left", *lines]))
    return kept, lines


def is_there(task: Task, results: Path) -> bool:
    drawn = task.noop or isinstance(task.data, Synthetic)
    return drawn or (results / "data" / stored_name(task) / "card.json").exists()


def stored_name(task: Task) -> str:
    """The name under which a task's data are stored."""
    return str(data_sets.stored_data(task.data))

"""Leave out the runs whose data are missing, and name the missing files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from floral.config import data_sets, networks
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData
from floral.config.schema.task import Task
from floral.config.searches import Search
from floral.core.units import run_count
from floral.runs.state import is_finished

FETCH_ERROR = "missing.txt"
"""The file in a data set's folder with the error of the last attempt to fetch it."""

Suites = Mapping[str, list[Run]]
"""Suite → its runs."""
Searches = Mapping[str, tuple[str, Search]]
"""Folder → suite and search, as in Settings.searches."""


def why_missing(task: Task, results: Path) -> str | None:
    """Return why a task has no data or no network, and what to do about it. Return None if they are there."""
    if has_data(task, results):
        return None
    if isinstance(task.data, CustomData) and (why := data_sets.why_unreadable(task.data)):
        return why
    name = next(name for name in _stored_names(task) if not is_stored(name, results))
    error = results / "data" / name / FETCH_ERROR
    if not error.exists():
        return f"{name}: not fetched yet; remedy: floral fetch {name}"
    first, *rest = error.read_text(encoding="utf-8").splitlines()
    remedies = [line.strip() for line in rest if line.strip().startswith("remedy: ")]
    return "; ".join([first, *remedies])


def tasks_of(suites: Suites, searches: Searches) -> list[Task]:
    """Return the tasks of all runs and of all searches. A search tunes one variant on one task."""
    return [run.task for runs in suites.values() for run in runs] + [search.task for _, search in searches.values()]


def leave_out_missing(suites: Suites, searches: Searches, results: Path) -> tuple[Suites, Searches, list[str]]:
    """Return the runs and searches whose data are stored, and one line for each reason why runs are left out.

    Finished runs are also returned, because they need no data. A search tunes one variant on one task.

    Raises:
        ConfigError: no run of a suite is left.
    """
    parts = {name: split_by_data(runs, results) for name, runs in suites.items()}
    possible = {name: runs for name, (runs, _) in parts.items()}
    lines = [f"suite {name}: {line}" for name, (_, reasons) in parts.items() for line in reasons]
    possible_searches = {
        folder: (suite, search)
        for folder, (suite, search) in searches.items()
        if why_missing(search.task, results) is None
    }
    return possible, possible_searches, lines


def split_by_data(runs: Iterable[Run], results: Path) -> tuple[list[Run], list[str]]:
    """Return the runs that are finished or whose data are stored, and one line for each reason why runs are left out.

    Raises:
        ConfigError: no run is left.
    """
    possible: list[Run] = []
    excluded: dict[str, list[Run]] = {}
    for run in runs:
        why = None if is_finished(results / run.folder) else why_missing(run.task, results)
        (possible if why is None else excluded.setdefault(why, [])).append(run)
    lines = [
        f"data missing: {why} ({run_count(len(group))} left out: "
        f"{', '.join(dict.fromkeys(run.task.name for run in group))})"
        for why, group in excluded.items()
    ]
    if not possible:
        raise ConfigError("\n".join(["no run is left, because the data of all runs are missing:", *lines]))
    return possible, lines


def has_data(task: Task, results: Path) -> bool:
    """Return whether the data and the pretrained networks of a task are stored, as far as it needs any."""
    return all(is_stored(name, results) for name in _stored_names(task))


def is_stored(name: str, results: Path) -> bool:
    """Return whether the folder results/data/<name> is complete."""
    return (results / "data" / name / "card.json").exists()


def _stored_names(task: Task) -> list[str]:
    """Return the names of the folders in results/data in which the data and the networks of a task are stored."""
    return [str(data_sets.stored_data(data)) for data in networks.to_fetch(task)]

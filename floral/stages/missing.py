"""Runs whose data cannot be had: with `allow_missing=true` they are left out of a call, and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from floral import config
from floral.config import OWN_ADVICE, ConfigError, Run, Search
from floral.files import atomic
from floral.schema import Own, Synthetic, Task
from floral.stages.plan import finished, many

NOTE = "missing.txt"
"""In the folder of a data set: why it could not be fetched."""


def try_to_fetch(tasks: Iterable[Task], results: Path, data_dir: Path | None) -> None:
    """Fetch the data sets of these tasks that are not there; of one that cannot be had, keep the reason.

    Nothing less than the fetch itself knows whether a mirror answers and a file has the right content.
    """
    wanted = {
        _stored(task): task.data
        for task in tasks
        if not (_there(task, results) or isinstance(task.data, Synthetic))
        and not (isinstance(task.data, Own) and config.why_unreadable(task.data))
    }
    if not wanted:
        return
    from floral.data.sources import DataError
    from floral.stages.fetch import fetch

    for name, data in wanted.items():
        note = results / "data" / name / NOTE
        try:
            fetch(data, results, data_dir)
        except DataError as error:
            atomic(note, str(error).encode())
        else:
            note.unlink(missing_ok=True)


def without_data(task: Task, results: Path) -> str | None:
    """The file that a task lacks and the remedy; None where its data are there, or it needs none."""
    if _there(task, results):
        return None
    if isinstance(task.data, Own) and (why := config.why_unreadable(task.data)):
        return f"{why}; remedy: {OWN_ADVICE}"
    name = _stored(task)
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
        why = None if finished(run, results) else without_data(run.task, results)
        (kept if why is None else lost.setdefault(why, [])).append(run)
    lines = [
        f"data missing: {why} ({many(len(of))} left out: {', '.join(dict.fromkeys(run.task.name for run in of))})"
        for why, of in lost.items()
    ]
    if not kept:
        raise ConfigError("\n".join(["no run is left", *lines]))
    return kept, lines


def _there(task: Task, results: Path) -> bool:
    drawn = task.noop or isinstance(task.data, Synthetic)
    return drawn or (results / "data" / _stored(task) / "card.json").exists()


def _stored(task: Task) -> str:
    """The name under which a task's data are stored."""
    return str(config.stored_data(task.data))

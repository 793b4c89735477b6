"""List all tasks by data set, with clients, rounds and model, and whether the data are available."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from floral.config import catalogue, data_sets, networks
from floral.config.schema.base import Frozen
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.task import Task
from floral.stages import fetch

HEADS = ("task", "K", "C", "a round", "rounds", "model", "shift", "partition", "title")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A task in the list of `floral tasks`.

    If the YAML file of the task does not set a key, the default of this key is listed.
    """

    task: str
    title: str
    data: str
    """A name in config/data.lock, the path of custom data, or the kind of synthetic data."""
    exact: bool
    """False if the data are a lossy or partial copy, whose results cannot be compared with published ones."""
    note: str
    at_hand: str
    """Whether the data and the networks are there, one of `fetch.Availability`.

    Only `floral fetch` checks their content and URLs.
    """
    remedy: str
    """If the data are missing: the missing file, and what to do. Otherwise empty."""
    clients: int
    clusters: int
    cohort: int
    rounds: int
    epochs: int
    batch: int
    model: dict[str, Any]
    shift: dict[str, Any]
    partition: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """All fields as a dictionary, which `--json` prints."""
        return asdict(self)

    @property
    def cells(self) -> list[str]:
        """The cells of the task's line in the table, in the order of HEADS."""
        counts = [str(count) for count in (self.clients, self.clusters, self.cohort, self.rounds)]
        return [self.task, *counts, *map(_value_text, (self.model, self.shift, self.partition)), self.title]


def rows(results: Path, data_dir: Path | None = None) -> list[Row]:
    """Return all tasks of config/tasks, sorted by data set."""
    tasks = [_row(catalogue.task(name), results, data_dir) for name in catalogue.names("tasks")]
    return sorted(tasks, key=lambda row: row.data)


def text(rows: list[Row]) -> str:
    """Return a table of all tasks, with one line per task. The tasks of one data set have a common heading.

    The heading says whether the data are available. It also says if the data are not the original, but a lossy or
    partial copy.
    """
    columns = [row.cells for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADS, *columns, strict=True)]

    def line(cells: list[str] | tuple[str, ...]) -> str:
        return "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()

    lines = [line(HEADS)]
    for _, members in itertools.groupby(zip(rows, columns, strict=True), key=lambda pair: pair[0].data):
        tasks = list(members)
        first = tasks[0][0]
        inexact = f"; INEXACT: {first.note or 'a lossy or partial copy'}" if not first.exact else ""
        remedy = f": {first.remedy}" if first.remedy else ""
        lines += ["", f"{first.data}: {first.at_hand}{remedy}{inexact}", *(line(cells) for _, cells in tasks)]
    return "\n".join(lines)


def _row(task: Task, results: Path, data_dir: Path | None) -> Row:
    needed = (task.data, *networks.used(task.model).values())
    states = [fetch.availability(data, results, data_dir) for data in needed]
    at_hand, remedy = max(states, key=lambda state: get_args(fetch.Availability).index(state[0]))  # the worst
    match task.data:
        case str(data):
            pass
        case CustomData(kind=kind, path=path):
            data = f"custom {kind} {path}"
        case Synthetic(kind=kind):
            data = f"synthetic ({kind})"
    lock = data_sets.data_lock().get(data)  # None for custom and synthetic data
    return Row(
        task=task.name, title=task.title, data=data,
        exact=lock is None or lock.exact, note="" if lock is None else lock.note, at_hand=at_hand, remedy=remedy,
        clients=task.clients, clusters=task.clusters, cohort=task.cohort, rounds=task.rounds, epochs=task.epochs,
        batch=task.batch, model=task.model.all_keys, shift=_non_default(task.shift),
        partition=_non_default(task.partition),
    )  # fmt: skip


def _non_default(values: Frozen) -> dict[str, Any]:
    """Return the settings of a shift or partition: `kind`, and all values that differ from the defaults."""
    return {"kind": values.model_dump()["kind"], **values.model_dump(mode="json", exclude_defaults=True)}


def _value_text(values: dict[str, Any]) -> str:
    """Return keys and values as text, such as "dirichlet, alpha 0.1".

    If a value is a list of lists, only its length is given, such as "class_groups, 20 groups".
    """

    def item(key: str, value: Any) -> str:
        is_nested = isinstance(value, list | tuple) and any(isinstance(member, list | tuple) for member in value)
        return f"{len(value)} {key}" if is_nested else f"{key} {value}"

    return ", ".join([values["kind"], *(item(key, value) for key, value in values.items() if key != "kind")])

"""List all tasks by data set, with clients, rounds and model, and whether the data are available.

`floral tasks NAME` prints the values of a task, and from which file each of them comes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from floral.cli.paragraphs import wrapped
from floral.config import catalogue, data_sets, layers, networks
from floral.config.reading import ConfigError
from floral.config.schema.base import Frozen
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.task import Task
from floral.stages import fetch

HEADS = ("task", "K", "C", "a round", "rounds")


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
    def counts(self) -> list[str]:
        """The numbers of clients, of clusters, of clients in each round, and of rounds, as texts."""
        return [str(count) for count in (self.clients, self.clusters, self.cohort, self.rounds)]

    @property
    def kinds(self) -> dict[str, str]:
        """The model, the shift and the partition as texts."""
        return {key: _value_text(getattr(self, key)) for key in ("model", "shift", "partition")}

    @property
    def availability(self) -> str:
        """The data set, whether it is available, what to do if not, and in what it differs from the original."""
        remedy = f": {self.remedy}" if self.remedy else ""
        inexact = "" if self.exact else f"; INEXACT: {self.note or 'a lossy or partial copy'}"
        return f"{self.data}: {self.at_hand}{remedy}{inexact}"


def rows(results: Path, data_dir: Path | None = None, names: Collection[str] = ()) -> list[Row]:
    """Return the tasks of these names, or all tasks of config/tasks, sorted by data set.

    Raises:
        ConfigError: a task is unknown, or its file has a mistake.
    """
    tasks = [_row(catalogue.task(name), results, data_dir) for name in dict.fromkeys(names) or catalogue.names("tasks")]
    return sorted(tasks, key=lambda row: row.data)


def mistakes() -> dict[str, str]:
    """Return the tasks of config/tasks whose files have a mistake: the name of the task → the message."""
    messages: dict[str, str] = {}
    for name in catalogue.names("tasks"):
        try:
            catalogue.task(name)
        except ConfigError as error:
            messages[name] = str(error)
    return messages


def text(rows: list[Row], mistakes: Mapping[str, str]) -> str:
    """Return a table of all tasks. The tasks of one data set have a common heading.

    The heading says whether the data are available. It also says if the data are not the original, but a lossy or
    partial copy. A task has one line with its numbers and its title, and one with its model, shift and partition. At
    the end are the tasks whose files have a mistake.
    """
    widths = [max(map(len, column)) for column in zip(HEADS, *([row.task, *row.counts] for row in rows), strict=True)]

    def columns(cells: Sequence[str]) -> str:
        return "".join(f"  {cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + "  "

    lines = [f"{columns(HEADS)}title"]
    for _, members in itertools.groupby(rows, key=lambda row: row.data):
        with_same_data = list(members)
        lines += ["", *wrapped(with_same_data[0].availability, "")]
        for row in with_same_data:
            lines += wrapped(row.title, columns([row.task, *row.counts]))
            lines += wrapped("; ".join(f"{key} {value}" for key, value in row.kinds.items()), "      ")
    if mistakes:
        lines += ["", "Tasks whose files have a mistake"]
        for name, message in mistakes.items():
            lines += wrapped(f"{name}: {message}")
    return "\n".join(lines)


def details(rows: list[Row]) -> str:
    """Return the values of each task, in the form of its YAML file, below the file from which they come."""
    return "\n\n".join(map(_details, rows))


def _details(row: Row) -> str:
    lines = [f"{row.task}: {row.title}", *wrapped(row.availability)]
    values, files = catalogue.task_values(row.task), catalogue.task_files(row.task)
    extended = {name: f" (extended by {child})" for child, name in itertools.pairwise(files)}
    listed = set[str]()
    for name, in_file in files.items():
        lines += ["", f"  {layers.file(f'tasks/{name}.yaml')}{extended.get(name, '')}"]
        for key in (key for key in in_file if key not in listed):
            merged = "" if values[key] == in_file[key] else "  # with values of the files below"
            lines += wrapped(f"{_yaml_text(key, values[key])}{merged}", "    ")
        listed |= in_file.keys()
    return "\n".join([*lines, "", "  All other keys have their defaults."])


def _yaml_text(key: str, value: Any) -> str:
    """Return a key and its value as YAML in one line."""
    braces = yaml.safe_dump({key: value}, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return braces.strip()[1:-1]


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

"""config/tasks → the terminal: every task by data set, what it asks of clients, and whether its data are at hand."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from floral.config import catalogue, data_sets
from floral.config.schema.base import Frozen
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.task import Task
from floral.stages import fetch

HEADS = ("task", "K", "C", "a round", "rounds", "model", "shift", "partition", "title")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A task with all its values resolved."""

    task: str
    title: str
    data: str
    """A name of config/data.lock, your own data, or what is drawn."""
    exact: bool
    """False: a lossy or partial copy, whose numbers are not comparable with published ones."""
    note: str
    at_hand: str
    """`fetch.AtHand`: whether a file that is found is the right one, or a URL answers, only fetching tells."""
    remedy: str
    """Where it is missing: which file, and what to do."""
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
    def cells(self) -> list[str]:
        counts = [str(count) for count in (self.clients, self.clusters, self.cohort, self.rounds)]
        return [self.task, *counts, *map(_words, (self.model, self.shift, self.partition)), self.title]


def tasks(results: Path, data_dir: Path | None, as_json: bool = False) -> None:
    """Print every task of config/tasks."""
    found = rows(results, data_dir)
    print(json.dumps([asdict(row) for row in found], indent=1, ensure_ascii=False) if as_json else text(found))


def rows(results: Path, data_dir: Path | None = None) -> list[Row]:
    """All tasks, those of one data set together."""
    found = [_row(catalogue.task(name), results, data_dir) for name in catalogue.names("tasks")]
    return sorted(found, key=lambda row: row.data)


def text(found: list[Row]) -> str:
    """Data sets with one line per task, below a line that says whether they are exact and at hand."""
    columns = [row.cells for row in found]
    widths = [max(map(len, column)) for column in zip(HEADS, *columns, strict=True)]

    def line(cells: list[str] | tuple[str, ...]) -> str:
        return "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()

    lines = [line(HEADS)]
    for _, members in itertools.groupby(zip(found, columns, strict=True), key=lambda pair: pair[0].data):
        together = list(members)
        first = together[0][0]
        inexact = f"; INEXACT: {first.note or 'a lossy or partial copy'}" if not first.exact else ""
        remedy = f": {first.remedy}" if first.remedy else ""
        lines += ["", f"{first.data}: {first.at_hand}{remedy}{inexact}", *(line(cells) for _, cells in together)]
    return "\n".join(lines)


def _row(task: Task, results: Path, data_dir: Path | None) -> Row:
    at_hand, remedy = fetch.at_hand(task.data, results, data_dir)
    match task.data:
        case str(data):
            pass
        case CustomData(kind=kind, path=path):
            data = f"own {kind} {path}"
        case Synthetic(kind=kind):
            data = f"synthetic ({kind})"
    known = data_sets.data_lock().get(data)
    return Row(
        task=task.name, title=task.title, data=data,
        exact=known is None or known.exact, note="" if known is None else known.note, at_hand=at_hand, remedy=remedy,
        clients=task.clients, clusters=task.clusters, cohort=task.cohort, rounds=task.rounds, epochs=task.epochs,
        batch=task.batch, model={"kind": task.model.kind, **task.model.arguments}, shift=_changed(task.shift),
        partition=_changed(task.partition),
    )  # fmt: skip


def _changed(values: Frozen) -> dict[str, Any]:
    """Its kind, and whatever is not as usual."""
    return {"kind": values.model_dump()["kind"], **values.model_dump(mode="json", exclude_defaults=True)}


def _words(values: dict[str, Any]) -> str:
    """As in "dirichlet, alpha 0.1"; of a list of lists, which --json has, their number: "class_groups, 20 groups"."""

    def said(key: str, value: Any) -> str:
        nested = isinstance(value, list | tuple) and any(isinstance(one, list | tuple) for one in value)
        return f"{len(value)} {key}" if nested else f"{key} {value}"

    return ", ".join([values["kind"], *(said(key, value) for key, value in values.items() if key != "kind")])

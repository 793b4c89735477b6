"""Check that the data fit the tasks before any job is planned, so that no job fails because of its data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from floral.config import catalogue, data_sets, layers
from floral.config.reading import ConfigError
from floral.config.schema.data import CustomData
from floral.config.schema.task import Task
from floral.data.fit import unfit_domains, unfit_thresholds


def check(tasks: Iterable[Task], results: Path) -> None:
    """Check that the data of each task can be read, and that the data fit the task.

    For example, `normalise` must have a value for each channel. Of data that are not fetched yet, only the number of
    classes is checked. Custom data (the user's own files) are read and stored first, unless they are stored already.

    All tasks are checked, also after one that is wrong.

    Raises:
        ConfigError: custom data cannot be read, or data do not fit a task; for each such task, the message has a line
            with its file.
    """
    distinct = {task.model_dump_json(): task for task in tasks}.values()
    problems: list[str] = []
    for task in distinct:
        try:
            if isinstance(task.data, CustomData):
                _store_custom(task, task.data, results)
            if isinstance(task.data, str | CustomData) and not task.noop:
                _check_fit(task, facts(task, results))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _store_custom(task: Task, data: CustomData, results: Path) -> None:
    """Read and store the custom data of a task, unless they are stored already.

    Raises:
        ConfigError: the data cannot be read.
    """
    if why := data_sets.why_unreadable(data):
        raise ConfigError(f"{place_of(task)}: `data.{data_sets.unreadable_key(data)}`: {why}")
    if (results / "data" / str(data_sets.stored_data(data)) / "card.json").exists():
        return
    from floral.data.sources import DataError
    from floral.stages.fetch import fetch

    try:
        fetch(data, results)
    except DataError as error:
        raise ConfigError(f"{place_of(task)}: `data`: {error}") from None


def facts(task: Task, results: Path, caller: str | None = None) -> dict[str, Any]:
    """Return what is known about the data set of a task: the content of its card.json.

    `caller` is as in `place_of`.

    If card.json is missing, return only the number of classes from data.lock. A damaged card.json counts as missing,
    because `fetch` will write it again. The number of classes of data with ratings follows from the task.

    Raises:
        ConfigError: the data have ratings and the task has no `thresholds`, or the other way round.
    """
    assert isinstance(task.data, str | CustomData), "synthetic data are not stored"
    dataset = data_sets.data_set(task.data)
    try:
        manifest = json.loads((results / "data" / str(data_sets.stored_data(task.data)) / "card.json").read_text())
        why = unfit_thresholds(manifest, task.thresholds)
    except (FileNotFoundError, ValueError, KeyError):
        return {} if dataset.classes is None else {"classes": dataset.classes}
    if why:
        raise ConfigError(f"{place_of(task, caller)}: {why}")
    return manifest if task.thresholds is None else {**manifest, "classes": len(task.thresholds) + 1}


def _check_fit(task: Task, facts: dict[str, Any]) -> None:
    """Raise ConfigError if the data have a wrong shape for the task, or cannot be partitioned as the task requires.

    `facts` is the result of `facts`. What `facts` does not contain is not checked.
    """
    rule = task.partition
    if rule.kind == "natural" and "rows" in facts and "natural_clients" not in facts:
        is_table = isinstance(task.data, CustomData) and task.data.kind == "table"
        remedy = "name the column of clients in `data.client`, or " if is_table else ""
        raise ConfigError(
            f"{place_of(task)}: `partition.kind: natural` needs data that name the client of each sample, but these "
            f"data do not; {remedy}set another `partition.kind`"
        )
    if rule.kind == "domains" and "rows" in facts and (why := unfit_domains(facts, task.clusters)):
        raise ConfigError(f"{place_of(task)}: {why}")
    clients = task.clients + (task.unseen.clients if task.unseen else 0)
    if rule.kind == "natural" and clients > facts.get("natural_clients", clients):
        raise ConfigError(
            f"{place_of(task)}: the task has {clients} clients (unseen clients included), but the data have only "
            f"{facts['natural_clients']} natural clients; set `clients` to a smaller number"
        )
    if "shape" in facts and (why := task.unfit(facts["shape"])):
        raise ConfigError(f"{place_of(task)}: {why}")
    if "classes" in facts and (why := rule.unfit(task.clients, task.concepts, facts["classes"])):
        raise ConfigError(f"{place_of(task)}: {why}")


def place_of(task: Task, caller: str | None = None) -> str:
    """Return where an error message says that a task is: the path of its file.

    If a suite changes values of the task, a note in parentheses says so. `caller` is the Python function, if any, that
    got the task: a task in no file, or one that differs from its file, is an argument of this function.
    """
    is_in_file = task.name in catalogue.names("tasks")
    changed = not is_in_file or catalogue.task(task.name) != task
    if changed and (caller is not None or not is_in_file):
        return f"{caller or 'floral.run'}: task"
    return f"{layers.file(f'tasks/{task.name}.yaml')}{' (as the suite changes it)' if changed else ''}"

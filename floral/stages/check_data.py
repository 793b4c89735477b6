"""What is known of the data before anything is planned: what they cannot give is refused then, and not in a job."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from floral.config import catalogue, data_sets, paths
from floral.config.reading import ConfigError
from floral.config.schema.data import CustomData
from floral.config.schema.task import Task


def check(tasks: Iterable[Task], results: Path) -> None:
    """Read own data that are not stored yet, and hold every task against the card of its data, or their entry in
    config/data.lock: own data lie here, and whatever is wrong with them is known at once.

    Raises:
        ConfigError: own data cannot be read, or do not fit their task; the message names the task's file.
    """
    for task in {task.model_dump_json(): task for task in tasks}.values():
        if isinstance(task.data, CustomData):
            _read(task, task.data, results)
        if isinstance(task.data, str | CustomData) and not task.noop:
            _hold(task, _facts(task.data, results))


def _read(task: Task, data: CustomData, results: Path) -> None:
    if why := data_sets.why_unreadable(data):
        raise ConfigError(f"{_where(task)}: data.path: {why}; {data_sets.CUSTOM_ADVICE}")
    if (results / "data" / str(data_sets.stored_data(data)) / "card.json").exists():
        return
    from floral.data.sources import DataError
    from floral.stages.fetch import fetch

    try:
        fetch(data, results)
    except DataError as error:
        raise ConfigError(f"{_where(task)}: data: {error}") from None


def _facts(data: str | CustomData, results: Path) -> dict[str, Any]:
    """The card of data that are stored, or what their entry says; a damaged card says nothing, for it is made anew."""
    dataset = data_sets.data_set(data)
    try:
        return json.loads((results / "data" / str(data_sets.stored_data(data)) / "card.json").read_text())
    except (FileNotFoundError, ValueError):
        return {} if dataset.classes is None else {"classes": dataset.classes}


def _hold(task: Task, facts: dict[str, Any]) -> None:
    """Raises ConfigError where data of these `facts` cannot be shared out as the task says."""
    rule = task.partition
    if rule.kind == "natural" and "rows" in facts and "natural_clients" not in facts:
        named = (
            "; name their column in data.client, or"
            if isinstance(task.data, CustomData) and task.data.kind == "table"
            else ";"
        )
        raise ConfigError(
            f"{_where(task)}: partition.kind: natural needs data that say whose each row is, and these do not{named} "
            "set another partition.kind"
        )
    wanted = task.clients + (task.unseen.clients if task.unseen else 0)
    if rule.kind == "natural" and wanted > facts.get("natural_clients", wanted):
        raise ConfigError(
            f"{_where(task)}: clients: {wanted} (with those of unseen) is more than the {facts['natural_clients']} "
            "natural clients of the data"
        )
    if "shape" in facts and (why := task.unfit(facts["shape"])):
        raise ConfigError(f"{_where(task)}: {why}")
    if "classes" in facts and (why := rule.unfit(task.clients, task.concepts, facts["classes"])):
        raise ConfigError(f"{_where(task)}: {why}")


def _where(task: Task) -> str:
    """The file of a task, if it is as this file says."""
    changed = "" if catalogue.task(task.name) == task else " (as the suite changes it)"
    return f"{paths.CONFIG_FOLDER}/tasks/{task.name}.yaml{changed}"

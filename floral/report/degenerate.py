"""Where a task makes a method another one: `equals` of config/methods → sentences beside the main table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

from floral.config.schema.method import Condition
from floral.config.schema.task import Task
from floral.report.collect import Collected, Configuration

CONDITIONS: Mapping[Condition, tuple[str, Callable[[Task, int], bool]]] = {
    "one_local_step": (
        "every client takes one local step a round",
        lambda task, rows: task.local_steps(rows) == 1,
    ),
    "one_cluster": ("there is one cluster", lambda task, rows: task.assumed == 1),
}
"""condition → what it says of a task, and whether it holds where no client has more than so many training rows."""


def holds(when: Condition, task: Task, rows: int) -> bool:
    """Whether a condition holds on a task of which no client has more than `rows` training rows."""
    return CONDITIONS[when][1](task, rows)


def equal(collected: Collected, configuration: Configuration) -> list[tuple[str, str, str]]:
    """(contender, the variant whose results it gives, why) for every declared rule that holds in a setting; empty
    before the first run is done, which tells how many rows the clients have."""
    done = collected.clients
    own = done if done.is_empty() else done.filter(pl.col("setting") == configuration.id)
    if own.is_empty():
        return []
    rows = int(own["train_rows"].max())  # type: ignore[arg-type]
    return [
        (method.id, rule.variant, CONDITIONS[rule.when][0])
        for method in collected.present(configuration)
        for rule in method.variant.equals
        if holds(rule.when, configuration.task, rows)
    ]

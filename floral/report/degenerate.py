"""Find methods that must give the same results as another method on a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

from floral.config.schema.method import Condition
from floral.config.schema.task import Task
from floral.report.collect import Collected
from floral.report.compared import Configuration

CONDITIONS: Mapping[Condition, tuple[str, Callable[[Task, int], bool]]] = {
    "one_local_step": (
        "every client takes one local step per round",
        lambda task, samples: task.local.optimiser == "sgd" and task.local_steps(samples) == 1,
    ),
    "one_cluster": ("there is one cluster", lambda task, samples: task.assumed == 1),
}
"""condition → its sentence, and a test of a task whose largest client has this number of training samples."""


def holds(condition: Condition, task: Task, samples: int) -> bool:
    """Return whether a condition, such as `one_cluster`, holds on this task.

    Under such a condition, two methods give the same results. samples: the largest number of training samples of a
    client.
    """
    return CONDITIONS[condition][1](task, samples)


def equal_methods(collected: Collected, configuration: Configuration) -> list[tuple[str, str, str]]:
    """Return (method id, other variant, reason) for each method that must give the same results as another variant.

    The files in config/methods declare such pairs under the key `equals`, with a condition on the task. The list is
    empty until the first run is finished, because some conditions need the clients' numbers of samples.
    """
    clients = collected.clients
    clients = clients if clients.is_empty() else clients.filter(pl.col("configuration") == configuration.id)
    if clients.is_empty():
        return []
    samples = int(clients["train_rows"].max())  # type: ignore[arg-type]
    return [
        (method.id, rule.variant, CONDITIONS[rule.when][0])
        for method in collected.methods_on(configuration)
        for rule in method.variant.equals
        if holds(rule.when, configuration.task, samples)
    ]

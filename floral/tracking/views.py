"""Save views of a suite in MLflow: the charts that compare the methods by their means over seeds.

MLflow's page keeps a saved view in a tag of the experiment. The tag has the filter, the order and grouping of runs, and
the order of charts. Without a saved view, MLflow sorts charts by name, so that a reader sees 17 costs first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from floral.config.schema.task import Task
from floral.tracking.mlflow_store import Experiment

TAG = "mlflow.sharedViewState."
"""Prefix of the tags in which MLflow keeps saved views."""
MEANS_VIEW = "means"
"""Key of the view with the means on all tasks of the suite."""
SECTIONS = ("test", "own_test", "route", "cost", "validation", "train", "seeds")
"""Groups of charts, from top to bottom. MLflow adds other groups below."""
FIRST_CHARTS = ("test/accuracy", "test/loss", "cost/bytes", "cost/client_passes")
"""Charts that stand first in their group. MLflow adds the others after them."""
MAX_BARS = 1000


def save_views(experiment: Experiment, tasks: Iterable[Task]) -> None:
    """Save the views of a suite with these tasks: one view of all tasks, and one of each if there are several.

    A view that exists is left as it is, because MLflow's users can change it.
    """
    by_name = {task.name: task for task in tasks}
    is_regression = all(task.loss == "mse" for task in by_name.values())
    views = {MEANS_VIEW: _view("Means over seeds", "tags.kind = 'mean'", is_regression)}
    if len(by_name) > 1:
        views |= {
            f"{MEANS_VIEW}.{name}": _view(
                f"Means on {name}", f"tags.kind = 'mean' and tags.task = '{name}'", task.loss == "mse"
            )
            for name, task in by_name.items()
        }
    tags = experiment.client.get_experiment(experiment.id).tags
    for key, view in views.items():
        if TAG + key not in tags:
            experiment.client.set_experiment_tag(experiment.id, TAG + key, view)


def address_of_view(server: str, experiment_id: str, key: str) -> str:
    """Return the address of a saved view. `server` is the address of MLflow's server."""
    query = urlencode({"viewStateShareKey": key, "compareRunsMode": "CHART"})
    return f"{server}/#/experiments/{experiment_id}/runs?{query}"


def _view(title: str, runs: str, is_regression: bool) -> str:
    """Return a saved view in MLflow's format. `runs` is the filter; the best run of each task stands first."""
    state = {
        "searchFilter": runs,
        "orderByKey": "metrics.`test/loss`" if is_regression else "metrics.`test/accuracy`",
        "orderByAsc": is_regression,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "task"}]},
        "useGroupedValuesInCharts": False,  # a bar for each method, not one for each task
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # keep the order of SECTIONS
        "compareRunSections": [_section(name) for name in SECTIONS],
        "compareRunCharts": [_bar_chart(metric) for metric in FIRST_CHARTS],
    }
    return json.dumps({"name": title, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _section(name: str) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": True, "isReordered": True}


def _bar_chart(metric: str) -> dict[str, Any]:
    section, _, name = metric.partition("/")
    return {
        "type": "BAR", "uuid": metric, "metricSectionId": section, "metricKey": metric, "displayName": name,
        "deleted": False, "isGenerated": True, "runsCountToCompare": MAX_BARS,
    }  # fmt: skip

"""Save views of a suite in MLflow: the charts that compare the methods by their means over seeds.

MLflow's page keeps a saved view in a tag of the experiment. The tag has the filter, the order and grouping of runs, and
the order of charts. Without a saved view, MLflow sorts charts by name, so that a reader sees 17 costs first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

from floral.config.run import Run
from floral.runs.seed_groups import group_by_seed
from floral.tracking.mlflow_store import CONFIGURATION, Experiment

TAG = "mlflow.sharedViewState."
"""Prefix of the tags in which MLflow keeps saved views."""
MEANS_VIEW = "means"
"""Key of the view with the means on all tasks of the suite."""
SECTIONS = ("test", "own_test", "route", "cost", "validation", "train", "seeds")
"""Groups of charts, from top to bottom. MLflow adds other groups below."""
FIRST_CHARTS = ("test/accuracy", "test/loss", "cost/bytes", "cost/client_passes")
"""Charts that stand first in their group. MLflow adds the others after them."""
COLUMNS = 2
"""Charts side by side."""
MAX_BARS, BAR_PIXELS, AXIS_PIXELS, MIN_PIXELS, MAX_PIXELS = 1000, 20, 180, 360, 1400
"""Bars in a chart, the height of a bar and of the axis with the legend, and the smallest and greatest height."""


def save_views(experiment: Experiment, runs: Iterable[Run]) -> None:
    """Save the views of a suite with these runs: one view of all tasks, and one of each if there are several.

    Runs are grouped by task; configurations of one task, such as `official` and `corrected`, are groups of their own.

    A view that exists is left as it is, because MLflow's users can change it.
    """
    by_task: dict[str, list[Run]] = {}
    for group in group_by_seed(runs).values():
        by_task.setdefault(group.runs[0].task.name, []).append(group.runs[0])
    means = "tags.kind = 'mean'"
    views = {MEANS_VIEW: _view("Means over seeds", means, [run for of_task in by_task.values() for run in of_task])}
    if len(by_task) > 1:
        views |= {
            f"{MEANS_VIEW}.{task}": _view(f"Means on {task}", f"{means} and tags.task = '{task}'", of_task)
            for task, of_task in by_task.items()
        }
    tags = experiment.client.get_experiment(experiment.id).tags
    for key, view in views.items():
        if TAG + key not in tags:
            experiment.client.set_experiment_tag(experiment.id, TAG + key, view)


def address_of_view(server: str, experiment_id: str, key: str) -> str:
    """Return the address of a saved view. `server` is the address of MLflow's server."""
    query = urlencode({"viewStateShareKey": key, "compareRunsMode": "CHART"})
    return f"{server}/#/experiments/{experiment_id}/runs?{query}"


def _view(title: str, run_filter: str, examples: Sequence[Run]) -> str:
    """Return a saved view in MLflow's format, the best mean of a group first. `examples` has one run of each mean."""
    is_regression = all(run.task.loss == "mse" for run in examples)
    height = min(max(MIN_PIXELS, AXIS_PIXELS + BAR_PIXELS * len(examples)), MAX_PIXELS)
    state = {
        "searchFilter": run_filter,
        "orderByKey": "metrics.`test/loss`" if is_regression else "metrics.`test/accuracy`",
        "orderByAsc": is_regression,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": CONFIGURATION}]},
        "useGroupedValuesInCharts": False,  # a bar for each method, not one for each task
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # keep the order of SECTIONS
        "compareRunSections": [_section(name, height) for name in SECTIONS],
        "compareRunCharts": [_bar_chart(metric) for metric in FIRST_CHARTS],
    }
    return json.dumps({"name": title, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _section(name: str, height: int) -> dict[str, Any]:
    return {
        "uuid": name, "name": name, "display": True, "isReordered": True, "columns": COLUMNS, "cardHeight": height
    }  # fmt: skip


def _bar_chart(metric: str) -> dict[str, Any]:
    section, _, name = metric.partition("/")
    return {
        "type": "BAR", "uuid": metric, "metricSectionId": section, "metricKey": metric, "displayName": name,
        "deleted": False, "isGenerated": True, "runsCountToCompare": MAX_BARS,
    }  # fmt: skip

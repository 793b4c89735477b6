"""Name and colour runs in MLflow as the report does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from floral.config.run import Run
from floral.report.compared import configuration_key, configurations, method_key, methods
from floral.report.style import method_styles
from floral.report.templates import template_yaml
from floral.tracking.appearance import Label


def labels_of(runs: Iterable[Run]) -> dict[Path, Label]:
    """Return the label of each run of a suite, by run folder.

    Two methods or two configurations of a suite never have the same label: `fedavg, lr 0.1` differs from
    `fedavg, lr 0.2`.
    """
    runs = list(runs)
    tasks, rows = configurations(runs), methods(runs)
    styles = method_styles(rows.values(), template_yaml("styles.yaml"))
    labels = {}
    for run in runs:
        row = rows[method_key(run)]
        method = f"{run.variant.name}{row.title.removeprefix(run.variant.title)}"
        configuration = tasks[configuration_key(run)].label
        labels[run.folder] = Label(configuration=configuration, method=method, colour=styles[row.id].colour)
    return labels

"""Whether stored data fit a task. Each command checks it at its start, so this module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def unfit_thresholds(manifest: Mapping[str, Any], thresholds: Sequence[float] | None) -> str | None:
    """Return why a task with these thresholds cannot use the stored data set, or None if it can."""
    if thresholds is None and manifest["classes"] is None:
        return (
            "the labels of these data are ratings, and no classes; set `thresholds` in the task, for example "
            "`thresholds: [-0.5, 0.5]`"
        )
    if thresholds is not None and manifest["classes"] is not None:
        return "`thresholds` is for data with ratings, but these data have classes; remove `thresholds` from the task"
    return None


def unfit_domains(manifest: Mapping[str, Any], clusters: int) -> str | None:
    """Return why the domains of a stored data set do not fit the clusters of a task, or None if they do."""
    names = manifest.get("domains")
    if names is None:
        return "`partition.kind: domains` needs data with domains, but these have none; set another `partition.kind`"
    if len(names) != clusters:
        return (
            f"`partition.kind: domains` needs one cluster for each domain, but `clusters` is {clusters}, and the data "
            f"have {len(names)} domains ({', '.join(names)}); set `clusters: {len(names)}`"
        )
    return None

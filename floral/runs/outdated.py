"""Find finished runs that the code here may compute with other numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from floral.config import code
from floral.config.run import Run
from floral.core.units import run_count
from floral.runs.state import is_finished

NAMED_VARIANTS = 5
"""A message names at most so many variants."""
REMEDY = "to train them again: floral forget --outdated; to keep them: increase the `version` of what changed"


def why_outdated(costs: Mapping[str, Any], method: str, model: str, precision: str) -> list[str]:
    """Return why a finished run may have other numbers than the code here would give. The list is empty if none.

    `costs` is the content of the run's costs.json. A reason is a changed file of the run's method, model or adaptors,
    or a precision with which an earlier version stored the run under the name of another precision.
    """
    reasons = [f"{path} has changed" for path in code.changed_files(costs.get("code"), method, model)]
    used = costs.get("execution", {}).get("precision", precision)
    return reasons + ([f"precision {used} was used, not {precision}"] if used != precision else [])


def outdated(runs: Iterable[Run], results: Path) -> dict[Path, list[str]]:
    """Return the finished runs that may have other numbers than the code here would give, as folder → reasons."""
    reasons_of = {}
    for run in runs:
        path = results / run.folder / "costs.json"
        if run.task.noop or not (is_finished(path.parent) and path.exists()):
            continue
        costs = json.loads(path.read_text(encoding="utf-8"))
        if reasons := why_outdated(costs, run.variant.method, run.task.model.kind, run.precision):
            reasons_of[run.folder] = reasons
    return reasons_of


def outdated_lines(runs: Iterable[Run], reasons_of: Mapping[Path, list[str]]) -> list[str]:
    """Return what to print about outdated runs: one line for each set of reasons, and the remedy.

    `reasons_of` is the result of `outdated`.
    """
    groups: dict[str, list[Run]] = {}
    for run in {run.folder: run for run in runs if run.folder in reasons_of}.values():
        groups.setdefault(" and ".join(reasons_of[run.folder]), []).append(run)
    lines = []
    for reasons, group in groups.items():
        names = list(dict.fromkeys(run.variant.name for run in group))
        more = f" and {len(names) - NAMED_VARIANTS} more variants" if len(names) > NAMED_VARIANTS else ""
        listed = f"{', '.join(names[:NAMED_VARIANTS])}{more}"
        lines.append(f"{run_count(len(group))} made by other code: {reasons} ({listed})")
    return lines + ([f"  {REMEDY}"] if lines else [])

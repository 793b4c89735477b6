"""Find runs of other code: finished ones, whose numbers may differ now, and interrupted ones, which cannot continue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from floral.config import code, own_model, plugins, reading
from floral.config.run import RESULTS_VERSION, Run
from floral.core.units import run_count
from floral.runs.state import is_finished, running

NAMED_VARIANTS = 5
"""A message names at most so many variants."""
CHECKPOINTS = ("checkpoint/last.safetensors", "checkpoint/before-last.safetensors")
"""The last and the previous checkpoint in a run's folder."""
FORGET = "floral forget --outdated"
REMEDY = f"to train them again: {FORGET}; to keep them: increase the `version` of what changed"


def why_outdated(costs: Mapping[str, Any], method: str, model: str, precision: str) -> list[str]:
    """Return why a run may have other numbers than the code here would give. The list is empty if there is no reason.

    `costs` is the content of a finished run's costs.json, or the progress in the checkpoint of an interrupted run. A
    reason is a changed file of the run's method, model or adaptors, or a precision with which an earlier version stored
    the run under the name of another precision.
    """
    recorded = costs.get("code")
    reasons = [
        f"{path} {'has changed' if recorded is None or path in recorded else 'is used now, but was not then'}"
        for path in code.changed_files(recorded, method, model)
    ]
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


def why_not_the_trained_model(run: Run, folder: Path) -> list[str]:
    """Return why the code and files here may not be those with which a finished run was trained.

    Its values were then trained in another model than the one that is built here. The hash of a run covers the content
    of files. So if the hash in run.yaml differs from the hash of the same values now, a file has changed.
    """
    recorded, now = reading.read(folder / "run.yaml"), run.model_copy()
    costs = folder / "costs.json"
    content = json.loads(costs.read_text(encoding="utf-8")) if costs.exists() else {"code": {}}
    reasons = why_outdated(content, run.variant.method, run.task.model.kind, run.precision)
    if recorded["hash8"] == now.hash8:
        return reasons
    if recorded["partition"]["folder"] != str(now.partition.folder):
        reasons.append("its data have changed or cannot be read")
    versions = code.versions(run.variant.method, run.task.model.kind)
    if (recorded["results_version"], recorded.get("versions", {})) != (RESULTS_VERSION, versions):
        reasons.append("another version of floral, of its method or of its model trained it")
    if not reasons and (files := own_model.places(run.task.model)):
        reasons.append(f"{' or '.join(files)} has changed, or cannot be read")
    return reasons or [f"its hash was {recorded['hash8']} and is now {now.hash8}"]


def interrupted_by_other_code(runs: Iterable[Run], results: Path) -> dict[Path, list[str]]:
    """Return the interrupted runs that are not continued, because other code began them, as folder → reasons."""
    reasons_of = {run.folder: why_not_continued(run, results / run.folder) for run in runs}
    return {folder: reasons for folder, reasons in reasons_of.items() if reasons}


def why_not_continued(run: Run, folder: Path) -> list[str]:
    """Return why the code here does not continue an interrupted run. The list is empty if it does.

    A finished or running run has no reason either.
    """
    if is_finished(folder) or (progress := _progress(folder)) is None:
        return []
    reasons = why_outdated(progress, run.variant.method, run.task.model.kind, run.precision)
    return [] if reasons and running(folder) else reasons


def cannot_continue(reasons: Iterable[str], remedy: str = f"remove it: {FORGET}") -> str:
    """Return what to say of an interrupted run that is not continued, with the remedy."""
    return f"cannot continue: {' and '.join(reasons)}; {remedy}"


def _progress(folder: Path) -> dict[str, Any] | None:
    """Return the progress in the last undamaged checkpoint of a run; None if there is none."""
    for name in CHECKPOINTS:
        try:
            with safe_open(folder / name, framework="numpy") as file:
                progress: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
                return progress
        except (OSError, SafetensorError, KeyError, ValueError):
            continue
    return None


def stored_run(folder: Path) -> Run | None:
    """Return the run of a folder, read from its run.yaml. Return None for a run that this version does not know.

    Raises:
        ConfigError: run.yaml is damaged.
    """
    if not (folder / "run.yaml").exists():
        return None
    values = reading.read(folder / "run.yaml")
    try:
        run = Run.model_validate({key: values[key] for key in Run.model_fields if key in values})
    except ValidationError:  # keys of an earlier version
        return None
    is_known = plugins.is_known("methods", run.variant.method) and plugins.is_known("models", run.task.model.kind)
    return run if is_known else None


def outdated_lines(
    runs: Iterable[Run], finished: Mapping[Path, list[str]], interrupted: Mapping[Path, list[str]] | None = None
) -> list[str]:
    """Return what to print about outdated runs: one line for each set of reasons, and the remedy.

    `finished` is the result of `outdated`, and `interrupted` that of `interrupted_by_other_code`.
    """
    runs = list(runs)
    lines = [*_lines(runs, finished, "made by other code"), *_lines(runs, interrupted or {}, "cannot continue")]
    return lines + ([f"  {REMEDY}"] if lines else [])


def _lines(runs: list[Run], reasons_of: Mapping[Path, list[str]], what: str) -> list[str]:
    groups: dict[str, list[Run]] = {}
    for run in {run.folder: run for run in runs if run.folder in reasons_of}.values():
        groups.setdefault(" and ".join(reasons_of[run.folder]), []).append(run)
    lines = []
    for reasons, group in groups.items():
        names = list(dict.fromkeys(run.variant.name for run in group))
        more = f" and {len(names) - NAMED_VARIANTS} more variants" if len(names) > NAMED_VARIANTS else ""
        listed = f"{', '.join(names[:NAMED_VARIANTS])}{more}"
        lines.append(f"{run_count(len(group))} {what}: {reasons} ({listed})")
    return lines

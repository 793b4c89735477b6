"""Describe a finished run in one line: the result, how many runs are done, and how much time is left."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from floral.config.hashing import hash8
from floral.config.run import Run
from floral.core.units import duration
from floral.io.files import atomic
from floral.io.locks import held
from floral.runs.state import failed_since, is_finished
from floral.stages.estimate import DAMAGED_JSON, expected_costs, warn_once

MAX_BYTES_OF_NAME = 100
"""A plan of suites with longer names has a hash as its name. File systems allow 255 bytes."""


def write_plan(suites: Mapping[str, list[Run]], results: Path) -> None:
    """Write all runs of this Snakemake call to results/plan/<suites>.json.

    The file also has the expected seconds of the unfinished runs. `progress_line` reads it to tell how much time is
    left.
    """
    runs = {run.folder: run for runs in suites.values() for run in runs}
    todo = {folder: run for folder, run in runs.items() if not is_finished(results / run.folder)}
    expected = expected_costs(todo.values(), results)
    plan = {
        "suites": list(suites),
        "started": time.time(),
        "runs": [str(folder) for folder in runs],
        "seconds": {str(folder): cost.seconds for folder, cost in expected.items()},
    }
    name = "+".join(suites)
    path = results / "plan" / f"{name if len(name.encode()) <= MAX_BYTES_OF_NAME else hash8(list(suites))}.json"
    with held(path.parent / ".lock", "writing its plan"):
        atomic(path, json.dumps(plan).encode())


def progress_line(results: Path, run: Run, summary: Mapping[str, Any]) -> str:
    """Describe a finished run in one line: result, time, how many planned runs are done, and the time left."""
    result = result_line(results, run, summary)
    plan = _newest_plan(results, str(run.folder))
    if plan is None:
        return result
    done = {folder for folder in plan["runs"] if folder == str(run.folder) or is_finished(results / folder)}
    todo = set(plan["runs"]) - done
    failed = {folder for folder in todo if failed_since(results / folder, plan["started"])}
    seconds_done = sum(seconds for folder, seconds in plan["seconds"].items() if folder in done)
    seconds_todo = sum(seconds for folder, seconds in plan["seconds"].items() if folder not in done | failed)
    count = f"[{len(done)}/{len(plan['runs'])}{f', {len(failed)} failed' if failed else ''}]"
    rest = ""
    if seconds_todo and seconds_done:
        rest = f"; about {duration((time.time() - plan['started']) * seconds_todo / seconds_done)} left"
    return f"{count} {result}{rest}"


def result_line(results: Path, run: Run, summary: Mapping[str, Any]) -> str:
    """Describe the result of a finished run and the time that it took, in one line."""
    tuned = ", tuned," if run.own_rates else ""
    result = f"{run.task.name} {run.variant.name}{tuned} seed {run.seed}: {_outcome(summary)}"
    with suppress(FileNotFoundError, *DAMAGED_JSON):  # the report names a damaged file
        costs = json.loads((results / run.folder / "costs.json").read_text())
        result += f", {costs['seconds']['total']:.1f} s"
    return result


def _newest_plan(results: Path, folder: str) -> dict[str, Any] | None:
    """Return the newest plan in which this run was still to do; None if there is no such plan.

    `write_plan` writes the plans. A damaged plan is ignored with a warning.
    """
    plans = []
    for path in (results / "plan").glob("*.json"):
        try:
            plan = json.loads(path.read_text())
            if folder in plan["seconds"] and plan["runs"] and plan["started"]:
                plans.append(plan)
        except DAMAGED_JSON as error:
            warn_once(f"{path}: damaged ({error!r}); the progress line leaves this plan out")
    return max(plans, key=lambda plan: plan["started"], default=None)


def _outcome(summary: Mapping[str, Any]) -> str:
    """Describe how a run ended: test accuracy, test loss (for regression), or the round in which the run diverged."""
    if summary["status"] == "diverged":
        return f"diverged at round {summary['diverged_at']}"
    if summary["test_accuracy"] is not None:
        return f"done, test accuracy {summary['test_accuracy']:.3f}"
    return f"done, test loss {summary['test_loss']:.4g}"

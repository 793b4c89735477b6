"""Describe a finished run in one line: the result, how many runs are done, and how much time is left."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from floral.config.hashing import hash8
from floral.config.run import Run
from floral.core.units import duration_range
from floral.io.files import atomic
from floral.io.locks import held
from floral.runs.state import failed_since, is_finished, running
from floral.stages.estimate import DAMAGED_JSON, SPREAD, Basis, expected_costs, time_range, warn_once

MAX_BYTES_OF_NAME = 100
"""A plan of suites with longer names has a hash as its name. File systems allow 255 bytes."""


MIN_MEASURED_RUNS = 5
"""Fewer finished runs do not tell how much time is left: they may be the fastest ones."""
MIN_RUNS_FOR_RATE = 3
"""From this number of finished runs per run at once on, the time left follows from the time since the start."""


def write_plan(suites: Mapping[str, list[Run]], results: Path, at_once: int | None) -> None:
    """Write all runs of this Snakemake call to results/plan/<suites>.json.

    The file also has the expected seconds of the unfinished runs, and what they are based on. `at_once` is the number
    of runs that train at the same time; None on a cluster, where it is not known before. `progress_line` reads the file
    to tell how much time is left.
    """
    runs = {run.folder: run for runs in suites.values() for run in runs}
    todo = {folder: run for folder, run in runs.items() if not is_finished(results / run.folder)}
    expected = expected_costs(todo.values(), results)
    plan = {
        "suites": list(suites),
        "started": time.time(),
        "runs": [str(folder) for folder in runs],
        "seconds": {str(folder): cost.seconds for folder, cost in expected.items()},
        "basis": {str(folder): cost.basis for folder, cost in expected.items()},
        "at_once": at_once,
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
    todo = [folder for folder in plan["runs"] if folder not in done]
    failed = {folder for folder in todo if failed_since(results / folder, plan["started"])}
    count = f"[{len(done)}/{len(plan['runs'])}{f', {len(failed)} failed' if failed else ''}]"
    all_times = {folder: _began_and_seconds(results / folder) for folder in plan["seconds"] if folder in done}
    measured = {folder: times for folder, times in all_times.items() if times is not None}
    if not measured:
        return f"{count} {result}"
    at_once = plan["at_once"] or 1 + sum((results / folder).exists() and running(results / folder) for folder in todo)
    uncounted = failed | (all_times.keys() - measured.keys())
    seconds = {folder: seconds for folder, (_, seconds) in measured.items()}
    elapsed = time.time() - min(began for began, _ in measured.values())
    remaining = seconds_left(plan, seconds, uncounted, at_once, elapsed)
    return f"{count} {result}" + (f"; {duration_range(*remaining)} left" if remaining else "")


def seconds_left(
    plan: Mapping[str, Any], measured: Mapping[str, float], uncounted: Collection[str], at_once: int, elapsed: float
) -> tuple[float, float] | None:
    """Return the shortest and the longest time in seconds that the runs of a plan may still need.

    measured: folder → seconds of the runs that finished in this call. uncounted: folders that count neither as
    finished nor as to do, such as those of failed runs. elapsed: seconds since the first run began. The result is None
    if fewer than MIN_MEASURED_RUNS are measured, or no run is to do.

    An expected time is multiplied by the measured / expected time of the finished runs of the same variant on the same
    task, else of the same task, else of all. The runs beside the last one are taken as half finished. First, `at_once`
    runs are assumed to train all the time. When more runs are finished, their number follows from `elapsed`.
    """
    expected = plan["seconds"]
    todo = [folder for folder in expected if folder not in measured and folder not in uncounted]
    if not todo or len(measured) < MIN_MEASURED_RUNS:
        return None
    sums: dict[tuple[str, ...], list[float]] = {}
    for folder, seconds in measured.items():
        for group in _groups(folder).values():
            of_group = sums.setdefault(group, [0.0, 0.0])
            of_group[0] += seconds
            of_group[1] += expected[folder]
    runs: list[tuple[float, Basis]] = []
    for folder in todo:
        groups = _groups(folder)
        basis: Basis = next(name for name, group in groups.items() if group in sums)
        group = groups[basis]
        if SPREAD[basis] > SPREAD[plan["basis"][folder]]:
            basis = plan["basis"][folder]
        runs.append((expected[folder] * sums[group][0] / sums[group][1], basis))
    beside = min(at_once, len(runs)) - 1
    runs[:beside] = [(seconds / 2, basis) for seconds, basis in runs[:beside]]
    if len(measured) >= MIN_RUNS_FOR_RATE * at_once:
        return time_range(runs, (sum(measured.values()) + sum(seconds for seconds, _ in runs[:beside])) / elapsed)
    return time_range(runs, at_once)


def _groups(folder: str) -> dict[Basis, tuple[str, ...]]:
    """Return the groups of runs of which a finished run tells how long this run takes, the most similar group first."""
    _, task, variant, _ = Path(folder).parts
    return {"variant": (task, variant), "task": (task,), "rough": ()}


def _began_and_seconds(folder: Path) -> tuple[float, float] | None:
    """Return when a finished run began (seconds since 1970) and how many seconds it took.

    The result is None if its costs.json is missing or damaged. The report names a damaged file.
    """
    file = folder / "costs.json"
    try:
        seconds = float(json.loads(file.read_text())["seconds"]["total"])
    except (FileNotFoundError, *DAMAGED_JSON):
        return None
    return file.stat().st_mtime - seconds, seconds


def result_line(results: Path, run: Run, summary: Mapping[str, Any]) -> str:
    """Describe the result of a finished run and the time that it took, in one line."""
    tuned = ", tuned," if run.own_rates else ""
    result = f"{run.task.name} {run.variant.name}{tuned} seed {run.seed}: {outcome(summary)}"
    if (times := _began_and_seconds(results / run.folder)) is not None:
        result += f", {times[1]:.1f} s"
    return result


def _newest_plan(results: Path, folder: str) -> dict[str, Any] | None:
    """Return the newest plan in which this run was still to do; None if there is no such plan.

    `write_plan` writes the plans. A damaged plan is ignored with a warning.
    """
    plans = []
    for path in (results / "plan").glob("*.json"):
        try:
            plan = json.loads(path.read_text())
            if folder in plan["seconds"] and plan["runs"] and plan["started"] and {"basis", "at_once"} <= plan.keys():
                plans.append(plan)
        except DAMAGED_JSON as error:
            warn_once(f"{path}: damaged ({error!r}); the progress line leaves this plan out")
    return max(plans, key=lambda plan: plan["started"], default=None)


def outcome(summary: Mapping[str, Any]) -> str:
    """Describe how a run ended: by the number of the report's main table, or the round in which the run diverged.

    The number is the official score (of runs that follow the published evaluation), the test accuracy or the test loss.
    """
    if summary["status"] == "diverged":
        return f"diverged at round {summary['diverged_at']}"
    if summary.get("official_score") is not None:
        return f"done, official score {summary['official_score']:.4g}"
    if summary["test_accuracy"] is not None:
        return f"done, test accuracy {summary['test_accuracy']:.3f}"
    return f"done, test loss {summary['test_loss']:.4g}"

"""Show the progress of a suite. Only the folders of the runs are read.

So this works on any machine that can read these folders, also if the runs train on another machine.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from floral.config.run import Run
from floral.core.units import duration_range, run_count
from floral.runs import segments
from floral.runs.core_seconds import core_seconds, in_words
from floral.runs.outdated import cannot_continue, interrupted_by_other_code, outdated, outdated_lines
from floral.runs.state import failure, is_finished, one_line, running
from floral.stages import estimate

State = Literal["done", "running", "waiting", "failed"]
STATES: tuple[State, ...] = ("done", "running", "waiting", "failed")
STOPPED = ("interrupted", "preempted")
"""Reasons in failure.json for which a run counts as waiting: it was stopped from outside and can continue."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of one run: its state, its last round and the time that it still needs."""

    run: str
    """Folder of the run, as a path inside the results folder."""
    name: str
    state: State
    round: int
    """The last evaluated round."""
    rounds: int
    seconds_left: float
    """Estimated time in seconds that the run still needs."""
    basis: estimate.Basis
    """What this estimate is based on: finished runs of the variant or of the task, or a rough figure."""
    reason: str | None = None
    """Why the run failed."""


def status(suite: str, runs: Iterable[Run], results: Path) -> dict[str, Any]:
    """Return how many runs are in each state, the estimated time left, and the progress of each run.

    `floral status --json` prints these values. `seconds_of_work` is the sum of the times that the running and waiting
    runs still need. `seconds_left` is the time until all these runs are finished, if the number of runs that train at
    once stays as it is now. If no run is running, `seconds_left` is null. `seconds_range` has the shortest and the
    longest time until then (of the work if no run is running). All times leave out failed runs, because they may fail
    again. `core_seconds` has the CPU time of the finished runs by part. `outdated` has lines about runs
    made by other code. Such a run counts as failed if it is interrupted, because it cannot continue.
    """
    runs = list(runs)
    expected = estimate.expected_costs(runs, results)
    interrupted = interrupted_by_other_code(runs, results)
    progress = [_progress(run, results, expected[run.folder], interrupted.get(run.folder, [])) for run in runs]
    counts = Counter(run.state for run in progress)
    seconds = [run.seconds_left for run in progress]
    at_once = counts["running"]
    work: list[tuple[float, estimate.Basis]] = [(run.seconds_left, run.basis) for run in progress if run.seconds_left]
    return {
        "suite": suite,
        "total": len(runs),
        **{state: counts[state] for state in STATES},
        "seconds_of_work": round(sum(seconds), 1),
        "seconds_left": round(max(sum(seconds) / at_once, max(seconds)), 1) if at_once else None,
        "seconds_range": estimate.time_range(work, at_once or 1) if work else None,
        "core_seconds": core_seconds(results / run.folder for run in runs if is_finished(results / run.folder)),
        "outdated": outdated_lines(runs, outdated(runs, results), interrupted),
        "runs": [asdict(run) for run in progress],
    }


def _progress(run: Run, results: Path, cost: estimate.Cost, why_not_continued: list[str]) -> Progress:
    """Return the progress of a run.

    `cost` is the expected cost of the whole run. `why_not_continued` says why an interrupted run cannot continue.
    """
    folder, rounds = results / run.folder, run.task.rounds
    identity = {
        "run": str(run.folder),
        "name": f"{run.task.name} {run.variant.name} seed {run.seed}",
        "rounds": rounds,
        "basis": cost.basis,
    }
    if is_finished(folder):
        return Progress(**identity, state="done", round=rounds, seconds_left=0.0)
    evaluations = segments.read(folder)
    last_round = evaluations[-1].round if evaluations else 0
    error = failure(folder)
    if why_not_continued:
        reason = cannot_continue(why_not_continued)
        return Progress(**identity, state="failed", round=last_round, seconds_left=0.0, reason=reason)
    if error and error["reason"] not in STOPPED:
        return Progress(**identity, state="failed", round=last_round, seconds_left=0.0, reason=one_line(error))
    state: State = "running" if running(folder) else "waiting"
    return Progress(**identity, state=state, round=last_round, seconds_left=cost.seconds * (1 - last_round / rounds))


def as_text(progress: dict[str, Any]) -> str:
    """Return the progress as text: the number of runs in each state, the time left, and each running or failed run."""
    counts = ", ".join(f"{progress[state]} {state}" for state in STATES)
    lines = [f"suite {progress['suite']}: {run_count(progress['total'])}: {counts}"]
    if progress["seconds_left"] is not None:
        at_once = run_count(progress["running"])
        lines.append(f"  {duration_range(*progress['seconds_range'])} left with {at_once} at once")
    elif progress["waiting"]:
        lines.append(f"  no run is running; {duration_range(*progress['seconds_range'])} of work is left")
    for run in progress["runs"]:
        if run["state"] == "running":
            lines.append(f"  running: {run['name']}: round {run['round']} of {run['rounds']}")
        elif run["state"] == "failed":
            lines.append(f"  failed: {run['name']}: {run['reason']} (floral show {shlex.quote(run['run'])})")
    if counted := int(progress["core_seconds"]["runs"]):
        words = in_words(progress["core_seconds"])
        lines.append(f"  core seconds of {run_count(counted)} that finished: {words}")
    return "\n".join([*lines, *(f"  {line}" for line in progress["outdated"])])

"""Progress of a suite, read from the run folders only, on any machine that sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from floral.config.run import Run
from floral.core.units import duration, run_count
from floral.runs import segments
from floral.runs.state import failure, is_finished, one_line, running
from floral.stages import estimate

State = Literal["done", "running", "waiting", "failed"]
STATES: tuple[State, ...] = ("done", "running", "waiting", "failed")
STOPPED = ("interrupted", "preempted")
"""Reasons in failure.json of a run that was stopped from outside. It waits, and continues at the next call."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of one run."""

    run: str
    """The run's folder, relative to the results."""
    name: str
    state: State
    round: int
    """The last evaluated round."""
    rounds: int
    seconds_left: float
    """Estimated time that the run still needs."""
    reason: str | None = None
    """Why it failed."""


def status(suite: str, runs: Iterable[Run], results: Path) -> dict[str, Any]:
    """The counts, the estimated time left, and the progress of each run, as `floral status --json` prints them.

    `seconds_of_work` is the sum over running and waiting runs. `seconds_left` is the time for it, with as many runs at
    once as run now; it is null if no run is running. Failed runs are in neither, because they may fail again.
    """
    runs = list(runs)
    expected = estimate.expected_costs(runs, results)
    progress = [_progress(run, results, expected[run.folder].seconds) for run in runs]
    counts = Counter(run.state for run in progress)
    seconds = [run.seconds_left for run in progress]
    at_once = counts["running"]
    return {
        "suite": suite,
        "total": len(runs),
        **{state: counts[state] for state in STATES},
        "seconds_of_work": round(sum(seconds), 1),
        "seconds_left": round(max(sum(seconds) / at_once, max(seconds)), 1) if at_once else None,
        "runs": [asdict(run) for run in progress],
    }


def _progress(run: Run, results: Path, seconds: float) -> Progress:
    """The progress of a run that needs `seconds` from start to end."""
    folder, rounds = results / run.folder, run.task.rounds
    identity = {"run": str(run.folder), "name": f"{run.task.name} {run.variant.name} seed {run.seed}", "rounds": rounds}
    if is_finished(folder):
        return Progress(**identity, state="done", round=rounds, seconds_left=0.0)
    evaluations = segments.read(folder)
    last_round = evaluations[-1].round if evaluations else 0
    error = failure(folder)
    if error and error["reason"] not in STOPPED:
        return Progress(**identity, state="failed", round=last_round, seconds_left=0.0, reason=one_line(error))
    state: State = "running" if running(folder) else "waiting"
    return Progress(**identity, state=state, round=last_round, seconds_left=seconds * (1 - last_round / rounds))


def as_text(progress: dict[str, Any]) -> str:
    """The counts, the time left, and a line for each running or failed run."""
    counts = ", ".join(f"{progress[state]} {state}" for state in STATES)
    lines = [f"suite {progress['suite']}: {run_count(progress['total'])}: {counts}"]
    if progress["seconds_left"] is not None:
        at_once = run_count(progress["running"])
        lines.append(f"  about {duration(progress['seconds_left'])} left with {at_once} at once")
    elif progress["waiting"]:
        lines.append(f"  no run is running; about {duration(progress['seconds_of_work'])} of work is left")
    for run in progress["runs"]:
        if run["state"] == "running":
            lines.append(f"  running: {run['name']}: round {run['round']} of {run['rounds']}")
        elif run["state"] == "failed":
            lines.append(f"  failed: {run['name']}: {run['reason']} (floral show {run['run']})")
    return "\n".join(lines)

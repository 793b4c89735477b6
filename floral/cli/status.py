"""Stage status: how far a suite is, read from the run folders alone, on whatever machine sees them."""

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
from floral.stages import plan

STATES = ("done", "running", "waiting", "failed")
CONTINUES = ("interrupted", "preempted")
"""The reasons in failure.json of a run that was stopped from outside: it only waits for its next turn."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One run: its state, its last evaluated round, the seconds that it still needs, why it has failed."""

    run: str
    name: str
    state: Literal["done", "running", "waiting", "failed"]
    round: int
    rounds: int
    seconds_left: float
    reason: str | None = None


def status(suite: str, runs: Iterable[Run], results: Path) -> dict[str, Any]:
    """What `floral status --json` prints: counts, the estimated time left, and every run's Standing.

    `seconds_left` holds for as many runs at once as run now, and is null when none does; `seconds_of_work` is the sum
    over running and waiting runs. A failed run is in neither: it may fail again.
    """
    runs = list(runs)
    expected = plan.costs(runs, results)
    standings = [_standing(run, results, expected[run.folder].seconds) for run in runs]
    counts = Counter(standing.state for standing in standings)
    left = [standing.seconds_left for standing in standings]
    at_once = counts["running"]
    return {
        "suite": suite,
        "total": len(runs),
        **{state: counts[state] for state in STATES},
        "seconds_of_work": round(sum(left), 1),
        "seconds_left": round(max(sum(left) / at_once, max(left)), 1) if at_once else None,
        "runs": [asdict(standing) for standing in standings],
    }


def _standing(run: Run, results: Path, seconds: float) -> Standing:
    folder, rounds = results / run.folder, run.task.rounds
    name = f"{run.task.name} {run.variant.name} seed {run.seed}"
    if is_finished(results / run.folder):
        return Standing(run=str(run.folder), name=name, state="done", round=rounds, rounds=rounds, seconds_left=0.0)
    said = segments.read(folder)
    reached = said[-1].round if said else 0
    left = seconds * (1 - reached / rounds)
    found = failure(folder)
    if found and found["reason"] not in CONTINUES:
        return Standing(
            run=str(run.folder), name=name, state="failed", round=reached, rounds=rounds, seconds_left=0.0,
            reason=one_line(found),
        )  # fmt: skip
    state = "running" if running(folder) else "waiting"
    return Standing(run=str(run.folder), name=name, state=state, round=reached, rounds=rounds, seconds_left=left)


def as_text(found: dict[str, Any]) -> str:
    """The counts, the time left, and a line for each run that runs or has failed."""
    counts = ", ".join(f"{found[state]} {state}" for state in STATES)
    lines = [f"suite {found['suite']}: {run_count(found['total'])}: {counts}"]
    if found["seconds_left"] is not None:
        lines.append(f"  about {duration(found['seconds_left'])} left with {run_count(found['running'])} at once")
    elif found["waiting"]:
        lines.append(f"  nothing runs now; about {duration(found['seconds_of_work'])} of work is left")
    for run in found["runs"]:
        if run["state"] == "running":
            lines.append(f"  running: {run['name']}: round {run['round']} of {run['rounds']}")
        elif run["state"] == "failed":
            lines.append(f"  failed: {run['name']}: {run['reason']} (floral show {run['run']})")
    return "\n".join(lines)

"""Before and while runs are made: how long they take, how far they are, and which have failed."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from floral.config import paths
from floral.config.run import Run
from floral.core.units import duration, file_size, run_count
from floral.io.files import atomic
from floral.io.locks import held
from floral.runs.state import failed_since, failure, is_finished, one_line

ROUGH_SECONDS = {"linear": 0.0005, "mlp": 0.0005}
"""Seconds of one client in one round, before anything was measured, by the model's kind."""
ROUGH_SECONDS_OTHER = 0.02
ROUGH_START = 4.0
"""Seconds from the start of a process to its first round."""
ROUGH_BYTES = 1_000_000
"""Bytes of a run's folder, before anything was measured."""
UNREADABLE = (ValueError, KeyError, TypeError)
"""What reading a damaged JSON file raises: no JSON, a key that is missing, another type."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run is expected to take, and from what that is known."""

    seconds: float
    bytes: float
    memory: int | None = None
    """The most that a finished run of the same task had in memory, in bytes."""
    basis: Literal["variant", "task", "rough"]


BASIS = {
    "variant": "finished runs of the same task and variant",
    "task": "finished runs of the same task",
    "rough": "a rough figure: rounds × clients a round × local epochs × 0.5 ms, 20 ms for convolutions",
}


@dataclass(frozen=True)
class _Measured:
    """One finished run: seconds before the first round, seconds of a round, bytes on disk and in memory."""

    start: float
    per_round: float
    bytes: int
    memory: int


def costs(runs: Iterable[Run], results: Path) -> dict[Path, Cost]:
    """The expected cost of every run, from the nearest finished ones."""
    by_task: dict[str, list[_Measured]] = {}
    by_variant: dict[tuple[str, str], list[_Measured]] = defaultdict(list)
    expected: dict[Path, Cost] = {}
    for run in runs:
        task, variant = run.task, run.variant.name
        if task.name not in by_task:
            by_task[task.name] = []
            for file in sorted((results / "train" / task.name).glob("*/*/costs.json")):
                if measured := _measured(file):
                    by_task[task.name].append(measured)
                    by_variant[task.name, file.parts[-3]].append(measured)
        if near := by_variant.get((task.name, variant)):
            expected[run.folder] = _mean(near, task.rounds, "variant")
        elif near := by_task[task.name]:
            expected[run.folder] = _mean(near, task.rounds, "task")
        else:
            expected[run.folder] = Cost(seconds=rough_seconds(run), bytes=ROUGH_BYTES, basis="rough")
    return expected


def rough_seconds(run: Run) -> float:
    """What a run takes, from its values alone."""
    task = run.task
    a_round = task.cohort * task.epochs * ROUGH_SECONDS.get(task.model.kind, ROUGH_SECONDS_OTHER)
    return ROUGH_START + task.rounds * a_round


def _measured(file: Path) -> _Measured | None:
    """What a finished run took; a damaged file costs a better estimate and not the call."""
    summary = file.with_name("summary.json")
    if not summary.exists():
        return None
    try:
        costs = json.loads(file.read_text())
        seconds, memory = costs["seconds"], int(costs["peak_memory_bytes"])
        rounds = max(1, json.loads(summary.read_text())["round"])
        start, whole = float(seconds["setup"]), float(seconds["total"])
    except UNREADABLE as error:
        _warn_once(f"{file.parent}: costs.json or summary.json is damaged ({error!r}); the estimate leaves it out")
        return None
    size = sum(path.stat().st_size for path in file.parent.iterdir() if path.is_file())
    return _Measured(start, (whole - start) / rounds, size, memory)


@cache
def _warn_once(message: str) -> None:
    print(message, file=sys.stderr)


def _mean(near: list[_Measured], rounds: int, basis: Literal["variant", "task"]) -> Cost:
    seconds = fmean(one.start for one in near) + rounds * fmean(one.per_round for one in near)
    memory = max(one.memory for one in near)
    return Cost(seconds=seconds, bytes=fmean(one.bytes for one in near), memory=memory, basis=basis)


def estimate(
    suites: Mapping[str, list[Run]], results: Path, workers: int, committed: Collection[Path] = frozenset()
) -> str:
    """Runs, time and disk of these suites, each with what the figure rests on.

    The folders `committed` are of runs that are not finished here and will be taken from a reference.
    """
    lines = [_size(name, runs, results, committed) for name, runs in suites.items()]
    todo = {
        run.folder: run
        for runs in suites.values()
        for run in runs
        if run.folder not in committed and not is_finished(results / run.folder)
    }
    if not todo:
        return "\n".join(lines)
    expected = costs(todo.values(), results).values()
    at_once = min(workers, len(todo))
    seconds = max(sum(cost.seconds for cost in expected) / at_once, max(cost.seconds for cost in expected))
    size = sum(cost.bytes for cost in expected)
    free = shutil.disk_usage(_existing(results)).free
    counts = Counter(cost.basis for cost in expected)
    basis = "; ".join(f"{run_count(counts[key])} from {words}" for key, words in BASIS.items() if counts[key])
    rough = f"; {run_count(counts['rough'])} from a rough figure: 1 MB" if counts["rough"] else ""
    lines.append(f"  time: about {duration(seconds)} with {run_count(at_once)} at once ({basis})")
    lines.append(f"  disk: about {file_size(size)} in {results}/ ({file_size(free)} free{rough})")
    if size > free:
        lines.append(
            f"  WARNING: more than is free; `results:` in {paths.CONFIG_FOLDER}/config.yaml can name another folder"
        )
    return "\n".join(lines)


def _size(name: str, runs: list[Run], results: Path, committed: Collection[Path]) -> str:
    done, taken = sum(is_finished(results / run.folder) for run in runs), sum(run.folder in committed for run in runs)
    reused = f"{taken} taken from reports/reference, " if taken else ""
    left = "all finished" if done == len(runs) else f"{done} finished, {reused}{len(runs) - done - taken} to do"
    tasks, variants = len({run.task.name for run in runs}), len({run.variant.name for run in runs})
    of = f"{tasks} task{'s' * (tasks != 1)} and {variants} variant{'s' * (variants != 1)}"
    return f"suite {name}: {run_count(len(runs))} of {of}: {left}"


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def start(suites: Mapping[str, list[Run]], results: Path) -> None:
    """Write results/plan/<suites>.json, from which every run of this call reads how far the whole is."""
    runs = {run.folder: run for runs in suites.values() for run in runs}
    todo = {folder: run for folder, run in runs.items() if not is_finished(results / run.folder)}
    expected = costs(todo.values(), results)
    plan = {
        "suites": list(suites),
        "started": time.time(),
        "runs": [str(folder) for folder in runs],
        "seconds": {str(folder): cost.seconds for folder, cost in expected.items()},
    }
    path = results / "plan" / f"{'+'.join(suites)}.json"
    with held(path.parent / ".lock", "writing its plan"):
        atomic(path, json.dumps(plan).encode())


def progress_line(results: Path, run: Run, summary: Mapping[str, Any]) -> str:
    """What a finished run says: how it ended, how far the whole is, and about how long the rest takes."""
    tuned = ", tuned," if run.own_rates else ""
    said = f"{run.task.name} {run.variant.name}{tuned} seed {run.seed}: {_outcome(summary)}"
    with suppress(FileNotFoundError, *UNREADABLE):  # the line does without it, and the report names a damaged file
        said += f", {json.loads((results / run.folder / 'costs.json').read_text())['seconds']['total']:.1f} s"
    plan = _newest_plan(results, str(run.folder))
    if plan is None:
        return said
    done = {folder for folder in plan["runs"] if folder == str(run.folder) or is_finished(results / folder)}
    todo = set(plan["runs"]) - done
    failed = {folder for folder in todo if failed_since(results / folder, plan["started"])}
    made = sum(seconds for folder, seconds in plan["seconds"].items() if folder in done)
    left = sum(seconds for folder, seconds in plan["seconds"].items() if folder not in done | failed)
    count = f"[{len(done)}/{len(plan['runs'])}{f', {len(failed)} failed' if failed else ''}]"
    rest = f"; about {duration((time.time() - plan['started']) * left / made)} left" if left and made else ""
    return f"{count} {said}{rest}"


def _newest_plan(results: Path, folder: str) -> dict[str, Any] | None:
    """The newest of the plans that this run is in; a damaged one is left out: a run does not fail for its last line."""
    mine = []
    for path in (results / "plan").glob("*.json"):
        try:
            plan = json.loads(path.read_text())
            if folder in plan["seconds"] and plan["runs"] and plan["started"]:
                mine.append(plan)
        except UNREADABLE as error:
            _warn_once(f"{path}: damaged ({error!r}); left out of the line of progress")
    return max(mine, key=lambda plan: plan["started"], default=None)


def _outcome(summary: Mapping[str, Any]) -> str:
    if summary["status"] == "diverged":
        return f"diverged at round {summary['diverged_at']}"
    if summary["test_accuracy"] is not None:
        return f"done, test accuracy {summary['test_accuracy']:.3f}"
    return f"done, test loss {summary['test_loss']:.4g}"


def failures(suites: Mapping[str, list[Run]], results: Path) -> list[str]:
    """One line for each run that has failed, also for one that could leave no reason."""
    lines = []
    for run in {run.folder: run for runs in suites.values() for run in runs}.values():
        folder = results / run.folder
        if found := failure(folder):
            name = f"{run.task.name} {run.variant.name} seed {run.seed}"
            lines.append(f"failed: {name}: {one_line(found)} (floral show {folder})")
    return lines

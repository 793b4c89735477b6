"""Estimate the time, disk space and memory of runs before the runs start."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Literal

from floral.config import own_model, paths
from floral.config.run import Run
from floral.core.units import duration_range, file_size, run_count
from floral.runs.state import is_finished

ROUGH_SECONDS = {"linear": 0.0005, "mlp": 0.0005}
"""Model kind → assumed seconds per client and round, used until a run of the task is finished."""
ROUGH_SECONDS_OTHER = 0.02
"""Assumed seconds per client and round for all other model kinds."""
ROUGH_START_SECONDS = 4.0
"""Assumed seconds from the start of a process to its first round."""
ROUGH_BYTES = 1_000_000
"""Assumed size of a run's folder in bytes."""
Basis = Literal["variant", "task", "rough", "guess"]
SPREAD: dict[Basis, float] = {"variant": 1.25, "task": 1.5, "rough": 1.8, "guess": 5.0}
"""How many times longer or shorter than expected a run may take, by what its estimate is based on (see BASIS)."""
DAMAGED_JSON = (ValueError, KeyError, TypeError)
"""Exceptions when a damaged JSON file is read: invalid JSON, a missing key, a wrong type."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The expected cost of one run, and what the estimate is based on."""

    seconds: float
    bytes: float
    memory: int | None = None
    """Peak memory in bytes of the finished runs of the same task."""
    basis: Basis


BASIS = {
    "variant": "finished runs of the same task and variant",
    "task": "finished runs of the same task",
    "rough": "a rough figure: rounds × clients a round × local epochs × 0.5 ms, 20 ms for convolutions",
    "guess": "a guess for your own or a pretrained model: 20 ms per client and local epoch, until a run is finished",
}


@dataclass(frozen=True)
class _Measurement:
    """The measured costs of a finished run.

    `start`: seconds before round 1. `per_round`: seconds per round. `bytes`: size of the run's folder. `memory`: peak
    memory in bytes.
    """

    start: float
    per_round: float
    bytes: int
    memory: int


def expected_costs(runs: Iterable[Run], results: Path) -> dict[Path, Cost]:
    """Return the expected time, disk space and memory of every run, as a mapping from the run's folder to its Cost.

    A cost is computed from the finished runs of the same task and variant. If there are none, it is computed from all
    finished runs of the task. If the task has no finished run, the cost is a rough figure, or a guess for the user's
    own or a pretrained model.
    """
    by_task: dict[str, list[_Measurement]] = {}
    by_variant: dict[tuple[str, str], list[_Measurement]] = defaultdict(list)
    expected: dict[Path, Cost] = {}
    for run in runs:
        task, variant = run.task, run.variant.name
        if task.name not in by_task:
            by_task[task.name] = []
            for file in sorted((results / "train" / task.name).glob("*/*/costs.json")):
                if measurement := _measurement(file):
                    by_task[task.name].append(measurement)
                    by_variant[task.name, file.parts[-3]].append(measurement)
        if measurements := by_variant.get((task.name, variant)):
            expected[run.folder] = _mean(measurements, task.rounds, "variant")
        elif measurements := by_task[task.name]:
            expected[run.folder] = _mean(measurements, task.rounds, "task")
        else:
            unknown = own_model.is_of_user(task.model) or task.model.kind in own_model.IN_FOLDER
            basis: Basis = "guess" if unknown else "rough"
            expected[run.folder] = Cost(seconds=rough_seconds(run), bytes=ROUGH_BYTES, basis=basis)
    return expected


def rough_seconds(run: Run) -> float:
    """Return a rough estimate of the seconds of a run, without any measurement."""
    task = run.task
    per_round = task.cohort * task.epochs * ROUGH_SECONDS.get(task.model.kind, ROUGH_SECONDS_OTHER)
    return ROUGH_START_SECONDS + task.rounds * per_round


def _measurement(file: Path) -> _Measurement | None:
    """Return the costs of a run, read from its costs.json; None for an unfinished run.

    If the file is damaged, print a warning and return None.
    """
    if not is_finished(file.parent):
        return None
    try:
        costs = json.loads(file.read_text())
        seconds, memory = costs["seconds"], int(costs["peak_memory_bytes"])
        rounds = max(1, json.loads(file.with_name("summary.json").read_text())["round"])
        start, total = float(seconds["setup"]), float(seconds["total"])
    except DAMAGED_JSON as error:
        warn_once(f"{file.parent}: costs.json or summary.json is damaged ({error!r}); the estimate leaves this run out")
        return None
    size = sum(path.stat().st_size for path in file.parent.iterdir() if path.is_file())
    return _Measurement(start, (total - start) / rounds, size, memory)


@cache
def warn_once(message: str) -> None:
    """Print a warning to stderr, unless the same warning was printed before."""
    print(message, file=sys.stderr)


def _mean(measurements: list[_Measurement], rounds: int, basis: Basis) -> Cost:
    """Return the expected cost of a run with this number of rounds, from measurements of finished runs.

    The expected time and size are means over the finished runs. The expected memory is their maximum.
    """
    start, per_round = (fmean(m.start for m in measurements), fmean(m.per_round for m in measurements))
    return Cost(
        seconds=start + rounds * per_round,
        bytes=fmean(m.bytes for m in measurements),
        memory=max(m.memory for m in measurements),
        basis=basis,
    )


def time_range(runs: Collection[tuple[float, Basis]], at_once: float) -> tuple[float, float]:
    """Return the shortest and the longest time in seconds in which these runs may end.

    A run is a pair: the expected seconds that it still needs, and what they are based on. `at_once` is the number of
    runs that train at the same time. The time is at least that of the longest run.
    """
    low, high = ([seconds * SPREAD[basis] ** sign for seconds, basis in runs] for sign in (-1, 1))
    return max(sum(low) / at_once, max(low)), max(sum(high) / at_once, max(high))


def estimate(
    suites: Mapping[str, list[Run]], results: Path, workers: int, committed: Collection[Path] = frozenset()
) -> str:
    """Describe the runs, time and disk space of these suites, and what each estimate is based on.

    `committed` has the folders of runs that will be copied from the reference results. These runs need no time.
    """
    lines = [_suite_line(name, runs, results, committed) for name, runs in suites.items()]
    todo = {
        run.folder: run
        for runs in suites.values()
        for run in runs
        if run.folder not in committed and not is_finished(results / run.folder)
    }
    if not todo:
        return "\n".join(lines)
    changed = sum(
        any(map(is_finished, (results / run.folder).parent.glob(f"seed{run.seed}-*"))) for run in todo.values()
    )
    if changed:
        lines.append(
            f"  {run_count(changed)} to do although a run of this name is finished: that one has other values, or was "
            "made by another version of your code; it is kept"
        )
    expected = expected_costs(todo.values(), results).values()
    at_once = min(workers, len(todo))
    low, high = time_range([(cost.seconds, cost.basis) for cost in expected], at_once)
    size = sum(cost.bytes for cost in expected)
    free = shutil.disk_usage(_existing_parent(results)).free
    counts = Counter(cost.basis for cost in expected)
    basis = "; ".join(f"{run_count(counts[key])} from {words}" for key, words in BASIS.items() if counts[key])
    unknown = counts["rough"] + counts["guess"]
    rough = f"; {run_count(unknown)} from a rough figure: 1 MB" if unknown else ""
    lines.append(f"  time: {duration_range(low, high)} with {run_count(at_once)} at once ({basis})")
    lines.append(f"  disk: about {file_size(size)} in {results}/ ({file_size(free)} free{rough})")
    if size > free:
        config = f"{paths.CONFIG_FOLDER}/config.yaml"
        lines.append(f"  WARNING: more than is free; set `results:` in {config} to another folder")
    return "\n".join(lines)


def _suite_line(name: str, runs: list[Run], results: Path, committed: Collection[Path]) -> str:
    """Return a line with the numbers of tasks, variants and runs of a suite.

    The line says how many runs are finished, how many are copied from reference results, and how many are trained.
    """
    done = sum(is_finished(results / run.folder) for run in runs)
    in_reference = sum(run.folder in committed for run in runs)
    reused = f"{in_reference} taken from the reference results, " if in_reference else ""
    todo = "all finished" if done == len(runs) else f"{done} finished, {reused}{len(runs) - done - in_reference} to do"
    tasks, variants = len({run.task.name for run in runs}), len({run.variant.name for run in runs})
    size = f"{tasks} task{'s' * (tasks != 1)} and {variants} variant{'s' * (variants != 1)}"
    return f"suite {name}: {run_count(len(runs))} of {size}: {todo}"


def _existing_parent(path: Path) -> Path:
    """Return the path if it exists, or else its nearest parent folder that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())

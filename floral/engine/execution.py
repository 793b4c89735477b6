"""Choose how a run is computed (backend, chunk size, workers), from the settings or by a short measurement.

A candidate is one such choice, which may be timed and compared with the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Literal, get_args

import torch

from floral.core.precision import Precision
from floral.core.process import operation_threads, set_threads
from floral.core.spec import Refused
from floral.engine.devices import wait_for
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State

Backend = Literal["auto", "loop", "vmap", "batched"]
BACKENDS: tuple[str, ...] = get_args(Backend)

CHUNKS = (1, 5)
"""Candidate numbers of clients per chunk, besides an equal part of the cohort. Small chunks keep weights in the cache;
large chunks spend less time on dispatch."""
TRIALS = 5
"""Number of timed trials per candidate, after one warm-up. The median counts and not the minimum, because threads that
sometimes wait for each other also do so in the run."""
TRIAL_STEPS = 4
"""Local steps of one trial: the first, the last, and two between them."""
MIN_TRIAL_CLIENTS = 8
"""Minimum number of clients of one trial."""
MIN_TRIAL_S = 0.02
"""Minimum duration of a trial in seconds. Shorter trials do not show how long threads wait for each other."""
TIE_FACTOR = 1.05
"""Candidates within this factor of the fastest count as equal, and the first is taken. A repeated measurement then
usually makes the same choice."""
SLOW_FACTOR = 1.3
"""A candidate whose best trial is slower than the best of all by this factor gets no further trials."""
MIN_TRIALS = 2
"""Minimum number of trials per candidate, because other work on the machine may have slowed down a single trial."""
MAX_MEASUREMENT_S = 5.0
"""Time in seconds after which there are no further trials, once each candidate has had MIN_TRIALS."""
MIN_TRAINING_S = 1.5
"""Minimum estimated training time in seconds for which recording the steps saves time."""


def choose(
    simulation: Simulation, state: State, backend: Backend, threads: int = 1, precision: Precision = "fp32"
) -> Execution:
    """Choose how a run is computed with the requested backend on `threads` cores.

    A candidate is a backend with a chunk size and a number of workers. With "auto", candidates of all backends are
    timed on clients of the first cohort, except those that cannot compute the method. The backend `batched` is left out
    if training is so short that recording the steps takes longer than it saves. With "batched", only the candidates of
    this backend are timed. With "vmap", one trial shows whether it can compute the method. With "loop", nothing is
    timed.

    Raises:
        Refused: the requested backend cannot run the method.
    """
    cohort = simulation.cohort_size
    cores = threads if simulation.device.type == "cpu" else 1
    if not simulation.settings.rounds or (cohort == 1 and backend != "batched"):
        return Execution(
            "loop",
            1,
            threads=cores,
            precision=precision,
            reason="one client at a time, so there is nothing to vectorise",
        )
    lists = on_cpu(cohort, cores) if simulation.device.type == "cpu" else on_gpu(cohort)
    plain, recorded = ([replace(execution, precision=precision) for execution in candidates] for candidates in lists)
    match backend:
        case "loop" | "vmap":
            how = next(execution for execution in plain if execution.backend == backend)
            if backend == "vmap":
                with operation_threads():
                    seconds_per_client(trial_of(simulation, how), state)
            return replace(how, reason="requested in the settings")
        case "batched":
            seconds = measure(simulation, state, recorded)
            return fastest(seconds, "the fastest of the requested backend")
    refused: list[str] = []
    seconds = measure(simulation, state, plain, refused)
    if min(seconds.values()) * cohort * simulation.settings.rounds * steps_per_trial_step(simulation) < MIN_TRAINING_S:
        return fastest(seconds, "the fastest without recording, because recording takes longer than it saves", refused)
    try:
        return fastest(measure(simulation, state, recorded) | seconds, "the fastest", refused)
    except Refused as reason:
        return fastest(seconds, "the fastest of the others", [*refused, f"not batched: {reason}"])


def steps_per_trial_step(simulation: Simulation) -> float:
    """Return how many times more local steps a client does in a full round than in a round that only measures time.

    A round that only measures time stops each phase of local training after TRIAL_STEPS steps. If rounds have different
    phases, the steps of one round of each kind are added.
    """
    settings = simulation.settings
    steps = settings.steps_per_epoch or math.ceil(simulation.data.train.count.max() / settings.batch)
    counts = [epochs * steps for round in simulation.kinds() for epochs in simulation.epochs(round)]
    return sum(counts) / sum(min(count, TRIAL_STEPS) for count in counts)


def spread(backend: Literal["loop", "batched"], chunk: int, cohort: int, cores: int) -> Execution:
    """Return a candidate with one worker per core, but at most one worker per chunk. Each worker has one thread."""
    return Execution(backend, chunk, workers=min(cores, math.ceil(cohort / chunk)))


def on_cpu(cohort: int, cores: int) -> tuple[list[Execution], list[Execution]]:
    """Return two lists of candidates (ways to compute a run on a CPU): first `vmap` and `loop`, then `batched`."""
    plain = [Execution("vmap", min(cohort, 30), threads=cores), spread("loop", 1, cohort, cores)]
    return plain, batched(cohort, cores)


def on_gpu(cohort: int) -> tuple[list[Execution], list[Execution]]:
    """Return two lists of candidates (ways to compute a run on a GPU): first `vmap` and `loop`, then `batched`.

    All have one worker, because one thread keeps a GPU busy. `vmap` and `batched` train the whole cohort as one chunk;
    `with_room` makes the chunk smaller if the memory is too small.
    """
    plain = [Execution("vmap", cohort), Execution("loop", 1)]
    return plain, [Execution("batched", cohort, graphs=True)]


def batched(cohort: int, cores: int) -> list[Execution]:
    """Return candidates of the backend `batched` on a CPU, which differ in chunk size. The largest chunk is first."""
    chunks = sorted({*(min(chunk, cohort) for chunk in CHUNKS), math.ceil(cohort / cores)}, reverse=True)
    many = [spread("batched", chunk, cohort, cores) for chunk in chunks]
    return many if cores == 1 else [*many, Execution("batched", cohort, threads=cores)]


def fastest(measured: dict[Execution, float], why: str, refused: Sequence[str] = ()) -> Execution:
    """Return the first candidate whose measured time is at most TIE_FACTOR times the shortest time.

    A candidate is a backend with a chunk size and a number of workers. `measured` has its seconds per client. The
    `reason` of the result lists all these times, and why other candidates were refused.
    """
    why = "; ".join([*dict.fromkeys(refused), why])
    limit = TIE_FACTOR * min(measured.values())
    best = next(candidate for candidate, seconds in measured.items() if seconds <= limit)
    table = ", ".join(f"{c.backend} {c.chunk} × {c.workers}: {1e3 * seconds:.2f}" for c, seconds in measured.items())
    return replace(
        best, reason=f"{why}, or first within {TIE_FACTOR} times of it (ms per client, chunk × workers: {table})"
    )


def measure(
    simulation: Simulation, state: State, candidates: Sequence[Execution], refused: list[str] | None = None
) -> dict[Execution, float]:
    """Return, for each candidate, the measured time in seconds for the local training of one client.

    The candidates are timed in turns, so that other work on the machine slows down all of them alike. The state does
    not change. If `refused` is given, candidates that cannot compute the method are left out, and the reasons are
    appended to it.

    Raises:
        Refused: a candidate cannot compute the method, and `refused` is None.
    """
    began = time.perf_counter()
    with operation_threads():
        trials: dict[Execution, Simulation] = {}
        for candidate in candidates:
            try:
                trial = with_room(simulation, state, candidate)
            except Refused as reason:
                if refused is None:
                    raise
                refused.append(f"not {candidate.backend}: {reason}")
            else:
                trials[trial.execution] = trial
        times: dict[Execution, list[float]] = {candidate: [] for candidate in trials}
        for turn in range(1, 1 + TRIALS):
            slow = SLOW_FACTOR * min(map(min, times.values())) if turn > MIN_TRIALS else math.inf
            for candidate, trial in trials.items():
                if turn <= MIN_TRIALS or min(times[candidate]) <= slow:
                    times[candidate].append(seconds_per_client(trial, state))
            if turn >= MIN_TRIALS and time.perf_counter() - began > MAX_MEASUREMENT_S:
                break
    return {candidate: median(seconds) for candidate, seconds in times.items()}


def with_room(simulation: Simulation, state: State, candidate: Execution) -> Simulation:
    """Return a simulation that measures the time of a candidate (backend, chunk size, workers), after a warm-up run.

    If the memory of the GPU is too small, the chunk is halved until it fits.

    Raises:
        OutOfMemoryError: the memory is too small for a single client.
    """
    while True:
        trial = trial_of(simulation, candidate)
        try:
            seconds_per_client(trial, state)
            return trial
        except torch.OutOfMemoryError:
            if candidate.chunk == 1:
                raise
        del trial  # frees its device memory
        candidate = replace(candidate, chunk=math.ceil(candidate.chunk / 2))
        if simulation.device.type == "cuda":
            torch.cuda.empty_cache()


def trial_of(simulation: Simulation, candidate: Execution) -> Simulation:
    """Return a simulation that computes few steps in the way of a candidate."""
    return Simulation(simulation.method, simulation.data, simulation.settings, candidate, most_steps=TRIAL_STEPS)


def seconds_per_client(trial: Simulation, state: State) -> float:
    """Measure how many seconds the local training of one client takes in one round.

    The time is a mean over clients of the first cohort. The number of these clients is large enough to keep all workers
    busy. If rounds have different phases, one round of each kind is timed, and the time is also a mean over the kinds.
    """
    how = trial.execution
    set_threads(how.threads)
    together = how.chunk * how.workers
    cohort, share = trial.pools(1)
    clients = slice(together * math.ceil(MIN_TRIAL_CLIENTS / together))
    wait_for(trial.device)
    began, times, kinds = time.perf_counter(), 0, trial.kinds()
    while times == 0 or time.perf_counter() - began < MIN_TRIAL_S:
        for round in kinds:
            trial.local_training(state, round, cohort[clients], share[clients])
            times += 1
    wait_for(trial.device)
    return (time.perf_counter() - began) / (times * len(cohort[clients]))

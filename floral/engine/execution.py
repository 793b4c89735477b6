"""How a run is carried out: backend, chunk and workers, asked for or found by a short measurement on its own shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Literal, get_args

import torch

from floral.core.process import operation_threads, set_threads
from floral.core.spec import Refused
from floral.engine.devices import Precision, wait_for
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State

Backend = Literal["auto", "loop", "vmap", "batched"]
BACKENDS: tuple[str, ...] = get_args(Backend)

CHUNKS = (1, 5)
"""Clients that one worker trains in one piece, beside an equal part of the cohort: few keep weights in the cache, many
spend less on dispatch."""
TRIALS = 5
"""Timed local trainings per candidate, after one that warms up; their median counts, for threads that wait for each
other now and then do so in the run as well."""
STEPS = 4
"""Local steps of one trial: the first, the last, and some between them."""
CLIENTS = 8
"""Clients of one trial, at least."""
SHORTEST = 0.02
"""Seconds of one trial, at least: threads that wait for each other show it only when they go on for a while."""
TIE = 1.05
"""Candidates this close count as equal and the first is taken, so that measuring again seldom chooses otherwise."""
WORSE = 1.3
"""A candidate whose best trial was so many times slower than the best of all gets no further ones …"""
FAIR = 2
"""… once each has had so many: a single trial may have met other work on the machine."""
ENOUGH = 5.0
"""Seconds after which a slow model gets no further trials, once it has had FAIR that count."""
WORTH = 1.5
"""Seconds of training below which a run is over before recording its steps has paid."""


def choose(
    simulation: Simulation, state: State, backend: Backend, threads: int = 1, precision: Precision = "fp32"
) -> Execution:
    """The execution for a backend on `threads` cores; "auto" times the candidates on the first cohort.

    Raises:
        Refused: the backend that was asked for cannot do the method.
    """
    cohort = simulation.cohort_size
    cores = threads if simulation.device.type == "cpu" else 1
    if not simulation.settings.rounds or (cohort == 1 and backend != "batched"):
        return Execution("loop", 1, threads=cores, precision=precision, reason="nothing to lift over")
    found = on_cpu(cohort, cores) if simulation.device.type == "cpu" else on_gpu(cohort)
    plain, recorded = ([replace(some, precision=precision) for some in those] for those in found)
    match backend:
        case "loop" | "vmap":
            return replace(next(some for some in plain if some.backend == backend), reason="asked for")
        case "batched":
            found = measure(simulation, state, recorded)
            return fastest(found, "the fastest of the backend that was asked for")
    found = measure(simulation, state, plain)
    if min(found.values()) * cohort * simulation.settings.rounds * longer(simulation) < WORTH:
        return fastest(found, "the fastest without recording, which would not pay")
    try:
        return fastest(measure(simulation, state, recorded) | found, "the fastest")
    except Refused as reason:
        return fastest(found, f"not batched: {reason}; the fastest of the others")


def longer(simulation: Simulation) -> float:
    """How many times as many local steps as a trial's a client makes."""
    settings = simulation.settings
    steps = settings.steps_per_epoch or math.ceil(simulation.data.train.count.max() / settings.batch)
    each = [epochs * steps for round in simulation.kinds() for epochs in simulation.epochs(round)]
    return sum(each) / sum(min(count, STEPS) for count in each)


def spread(backend: Literal["loop", "batched"], chunk: int, cohort: int, cores: int) -> Execution:
    """Chunks spread over as many workers as there are cores, one thread each."""
    return Execution(backend, chunk, workers=min(cores, math.ceil(cohort / chunk)))


def on_cpu(cohort: int, cores: int) -> tuple[list[Execution], list[Execution]]:
    """The candidates without recording, and those with it."""
    plain = [Execution("vmap", min(cohort, 30), threads=cores), spread("loop", 1, cohort, cores)]
    return plain, batched(cohort, cores)


def on_gpu(cohort: int) -> tuple[list[Execution], list[Execution]]:
    """The same for a GPU, which one thread keeps busy: the whole cohort at once, or as much of it as has room."""
    plain = [Execution("vmap", cohort), Execution("loop", 1)]
    return plain, [Execution("batched", cohort, graphs=True)]


def batched(cohort: int, cores: int) -> list[Execution]:
    """Those with recording, the largest chunks first."""
    chunks = sorted({*(min(chunk, cohort) for chunk in CHUNKS), math.ceil(cohort / cores)}, reverse=True)
    many = [spread("batched", chunk, cohort, cores) for chunk in chunks]
    return many if cores == 1 else [*many, Execution("batched", cohort, threads=cores)]


def fastest(found: dict[Execution, float], why: str) -> Execution:
    """The first candidate that is within a tie of the fastest, with the table of all as its reason."""
    limit = TIE * min(found.values())
    best = next(candidate for candidate, seconds in found.items() if seconds <= limit)
    table = ", ".join(f"{c.backend} {c.chunk} × {c.workers}: {1e3 * seconds:.2f}" for c, seconds in found.items())
    return replace(best, reason=f"{why}, or first within {TIE} times of it (ms per client, chunk × workers: {table})")


def measure(simulation: Simulation, state: State, candidates: Sequence[Execution]) -> dict[Execution, float]:
    """Seconds per client of one local training under each candidate, tried in turns; the state stays as it is."""
    began = time.perf_counter()
    with operation_threads():
        trials = {trial.execution: trial for trial in (with_room(simulation, state, some) for some in candidates)}
        found: dict[Execution, list[float]] = {some: [] for some in trials}
        for turn in range(1, 1 + TRIALS):
            slow = WORSE * min(map(min, found.values())) if turn > FAIR else math.inf
            for candidate, trial in trials.items():
                if turn <= FAIR or min(found[candidate]) <= slow:
                    found[candidate].append(seconds_per_client(trial, state))
            if turn >= FAIR and time.perf_counter() - began > ENOUGH:
                break
    return {candidate: median(seconds) for candidate, seconds in found.items()}


def with_room(simulation: Simulation, state: State, candidate: Execution) -> Simulation:
    """A trial of the candidate that has warmed up; of half its chunk, and so on, where a GPU's memory is too small.

    Raises:
        OutOfMemoryError: not even one client at a time has room.
    """
    while True:
        trial = Simulation(simulation.method, simulation.data, simulation.settings, candidate, most_steps=STEPS)
        try:
            seconds_per_client(trial, state)
            return trial
        except torch.OutOfMemoryError:
            if candidate.chunk == 1:
                raise
        del trial  # and what it holds of the device's memory
        candidate = replace(candidate, chunk=math.ceil(candidate.chunk / 2))
        if simulation.device.type == "cuda":
            torch.cuda.empty_cache()


def seconds_per_client(trial: Simulation, state: State) -> float:
    """Time of the local training of as much of the first cohort as keeps all workers busy, per client and round, over
    all kinds of rounds."""
    how = trial.execution
    set_threads(how.threads)
    together = how.chunk * how.workers
    cohort, share = trial.pools(1)
    some = slice(together * math.ceil(CLIENTS / together))
    wait_for(trial.device)
    began, times, kinds = time.perf_counter(), 0, trial.kinds()
    while times == 0 or time.perf_counter() - began < SHORTEST:
        for round in kinds:
            trial.local_training(state, round, cohort[some], share[some])
            times += 1
    wait_for(trial.device)
    return (time.perf_counter() - began) / (times * len(cohort[some]))

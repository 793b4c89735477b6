"""How a run is carried out: backend and chunk, asked for or found by a short measurement on the run's own shapes."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Literal

import torch

from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State

CHUNKS = (5, 30)
"""Clients that one vmap holds: few keep weights and gradients in the cache, many spend less on dispatch."""
TRIALS = 5
"""Timed local trainings per candidate, after one that warms up; the fastest counts, for other work on the machine only
ever slows one down."""
TIE = 1.25
"""Candidates this close count as equal and the first is taken, so that measuring again seldom chooses otherwise."""
ENOUGH = 3.0
"""Seconds after which a slow model gets no further trials."""


def choose(simulation: Simulation, state: State, backend: Literal["auto", "loop", "vmap"]) -> Execution:
    """The execution for a backend; "auto" times the candidates on the first cohort and takes a fastest one."""
    cohort = len(simulation.cohort(1))
    if backend == "loop":
        return Execution("loop", 1, "asked for")
    if backend == "vmap":
        return Execution("vmap", min(cohort, CHUNKS[-1]), "asked for")
    if not simulation.phases or cohort == 1:
        return Execution("loop", 1, "nothing to lift over")
    chunks = sorted({min(cohort, chunk) for chunk in CHUNKS})
    candidates = [*(Execution("vmap", chunk) for chunk in reversed(chunks)), Execution("loop", 1)]
    found = measure(simulation, state, candidates)
    fast = TIE * min(found.values())
    best = next(candidate for candidate in candidates if found[candidate] <= fast)
    table = ", ".join(f"{c.backend} {c.chunk}: {1e3 * found[c]:.2f}" for c in candidates)
    return replace(best, reason=f"fastest, or first within {TIE} times of it (ms per client): {table}")


def measure(simulation: Simulation, state: State, candidates: list[Execution]) -> dict[Execution, float]:
    """Seconds per client of one local training under each candidate, tried in turns; the state stays as it is."""
    began = time.perf_counter()
    best = dict.fromkeys(candidates, math.inf)
    for trial in range(1 + TRIALS):
        for candidate in candidates:
            seconds = seconds_per_client(simulation, state, candidate)
            if trial > 0:
                best[candidate] = min(best[candidate], seconds)
        if trial > 0 and time.perf_counter() - began > ENOUGH:
            break
    return best


def seconds_per_client(simulation: Simulation, state: State, execution: Execution) -> float:
    """Time of one local training of a chunk of the first cohort, per client."""
    trial = Simulation(simulation.method, simulation.data, simulation.settings, execution)
    learners = trial.cohort(1)[: execution.chunk]
    share = torch.full((len(learners),), 1 / len(learners), device=simulation.device)
    began = time.perf_counter()
    trial.train_chunk(state, 1, learners, share)
    if simulation.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / len(learners)

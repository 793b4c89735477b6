"""How a run is carried out: backend and chunk, asked for or found by a short measurement on the run's own shapes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch

from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State

CHUNKS = (5, 30)
"""Clients that one vmap holds: few keep weights and gradients in the cache, many spend less on dispatch."""
TRIALS = 2
"""Timed local trainings per candidate, after one that warms up; the fastest counts."""


@dataclass(frozen=True)
class Candidate:
    execution: Execution
    seconds_per_client: float


def choose(simulation: Simulation, state: State, backend: Literal["auto", "loop", "vmap"]) -> Execution:
    """The execution for a backend; "auto" times the candidates on the first cohort and takes the fastest."""
    cohort = len(simulation.cohort(1))
    if backend == "loop":
        return Execution("loop", 1, "asked for")
    if backend == "vmap":
        return Execution("vmap", min(cohort, CHUNKS[-1]), "asked for")
    if not simulation.phases or cohort == 1:
        return Execution("loop", 1, "nothing to lift over")
    chunks = sorted({min(cohort, chunk) for chunk in CHUNKS})
    candidates = [Execution("loop", 1), *(Execution("vmap", chunk) for chunk in chunks)]
    timed = [Candidate(execution, measure(simulation, state, execution)) for execution in candidates]
    best = min(timed, key=lambda candidate: candidate.seconds_per_client)
    table = ", ".join(f"{c.execution.backend} {c.execution.chunk}: {1e3 * c.seconds_per_client:.2f}" for c in timed)
    return replace(best.execution, reason=f"fastest of (ms per client): {table}")


def measure(simulation: Simulation, state: State, execution: Execution) -> float:
    """Seconds per client of one local training, the fastest of a few; the state stays as it is."""
    trial = Simulation(simulation.method, simulation.data, simulation.settings, execution)
    learners = trial.cohort(1)[: execution.chunk]
    share = torch.full((len(learners),), 1 / len(learners), device=simulation.device)
    times = []
    for _ in range(1 + TRIALS):
        began = time.perf_counter()
        trial.train_chunk(state, 1, learners, share)
        if simulation.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:]) / len(learners)

"""Choose how a run is computed (backend, chunk size, workers), from the settings or by a short measurement.

A candidate is one such choice, which may be timed and compared with the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, get_args

import torch

from floral.core.clock import read_clock
from floral.core.precision import Precision
from floral.core.process import operation_threads, set_threads
from floral.core.spec import Refused
from floral.engine.devices import wait_for
from floral.engine.peak_memory import PeakMemory
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State

Backend = Literal["auto", "loop", "vmap", "batched"]
BACKENDS: tuple[str, ...] = get_args(Backend)

CHUNKS = (1, 5)
"""Candidate numbers of clients per chunk, besides an equal part of the cohort. Small chunks keep weights in the cache;
large chunks spend less time on dispatch."""
TRIALS = 5
"""Number of undisturbed trials per candidate, after one warm-up. Their median counts and not the minimum, because
threads that sometimes wait for each other also do so in the run."""
MAX_TRIALS = 10
"""Maximum number of trials per candidate, disturbed trials included."""
MAX_LOST_SHARE = 0.1
"""A trial is disturbed if other programs kept this process from a core for more than this share of the trial."""
TRIAL_STEPS = 4
"""Local steps of one trial: the first, the last, and two between them."""
MIN_TRIAL_CLIENTS = 8
"""Minimum number of clients of one trial."""
MIN_TRIAL_S = 0.02
"""Minimum duration of a trial in seconds. Shorter trials do not show how long threads wait for each other."""
TIE_FACTOR = 1.05
"""Candidates within this factor of the fastest count as equal. The one with the fewest cores is taken, and the first of
several. A repeated measurement then usually makes the same choice."""
SLOW_FACTOR = 1.3
"""A candidate whose best trial is slower than the best of all by this factor gets no further trials. For this, the time
that a trial lost to other programs does not count."""
HOPELESS_FACTOR = 2.0
"""The same factor for a candidate with fewer than MIN_TRIALS trials."""
MIN_TRIALS = 2
"""Minimum number of trials, because other work on the machine may have slowed down a single trial."""
MAX_MEASUREMENT_S = 5.0
"""Time in seconds after which there are no further trials, once each candidate has had MIN_TRIALS."""
MAX_MEASUREMENT_SHARE = 0.05
"""Share of the estimated training time after which there are no further trials. In a short run, a slightly slower
candidate costs less than further trials."""
MAX_BYTES = 512 << 20
"""Maximum estimated memory in bytes of all clients that train at the same time on a CPU. Larger chunks are not faster,
because their weights and activations do not fit into the cache."""
MAX_BYTES_OF_VMAP = 384 << 20
"""The same maximum for the backend `vmap`, which also computes steps that are too large to be recorded."""
MAX_RECORDED_BYTES = 128 << 20
"""Maximum number of bytes of all tensors that one client's step makes, for "auto" to record the step or to vectorise it
with `vmap`. Both save dispatch, which is a small share of a larger step, and both need more memory."""
MIN_TRAINING_S = 1.5
"""Minimum estimated training time in seconds for which recording the steps saves time."""


def choose(
    simulation: Simulation, state: State, backend: Backend, threads: int = 1, precision: Precision = "fp32"
) -> Execution:
    """Choose how a run is computed with the requested backend on `threads` cores.

    A candidate is a backend with a chunk size and a number of workers. With "auto", candidates of all backends are
    timed on clients of the first cohort, except those that cannot compute the method. The backend `batched` is left out
    if training is so short that recording the steps takes longer than it saves. On a CPU, a step with tensors of more
    than MAX_RECORDED_BYTES is computed by `loop`, and only the numbers of cores are compared. With "batched", only the
    candidates of this backend are timed. With "vmap", one trial shows whether it can compute the method. With "loop",
    nothing is timed.

    Raises:
        Refused: the requested backend cannot run the method.
    """
    cohort = simulation.cohort_size
    on_this_cpu = simulation.device.type == "cpu"
    cores = threads if on_this_cpu else 1
    if not simulation.settings.rounds:
        return Execution("loop", 1, threads=cores, precision=precision, reason="nothing is trained")
    lists, step_bytes = on_gpu(cohort), 0
    if on_this_cpu:
        client_bytes, step_bytes = (0, 0) if backend == "loop" else memory_of_client(simulation, state)
        lists = on_cpu(cohort, cores, client_bytes)
    plain, recorded = ([replace(execution, precision=precision) for execution in candidates] for candidates in lists)
    if backend == "batched":
        return fastest(measure(simulation, state, recorded), "the fastest of the requested backend")
    if backend != "auto":
        requested = [execution for execution in plain if execution.backend == backend]
        if not requested:
            return replace(plain[-1], reason="one client at a time, so there is nothing to vectorise")
        if backend == "vmap":
            with operation_threads():
                seconds_per_client(trial_of(simulation, requested[-1]), state)
        return replace(requested[-1], reason="requested in the settings")
    if step_bytes > MAX_RECORDED_BYTES:
        loops = [execution for execution in plain if execution.backend == "loop"]
        why = f"one client at a time, because a step takes {step_bytes >> 20} MB"
        return fastest(measure(simulation, state, loops), why) if len(loops) > 1 else replace(loops[0], reason=why)
    refused: list[str] = []
    seconds = measure(simulation, state, plain, refused)
    if training_seconds(simulation, min(seconds.values())) < MIN_TRAINING_S:
        return fastest(seconds, "the fastest without recording, because recording takes longer than it saves", refused)
    try:
        return fastest(measure(simulation, state, recorded) | seconds, "the fastest", refused)
    except Refused as reason:
        return fastest(seconds, "the fastest of the others", [*refused, f"not batched: {reason}"])


def training_seconds(simulation: Simulation, seconds: float) -> float:
    """Estimate the time in seconds of all rounds, if one client takes `seconds` in a trial."""
    rounds = simulation.settings.rounds
    return seconds * simulation.cohort_size * rounds * steps_per_trial_step(simulation)


def steps_per_trial_step(simulation: Simulation) -> float:
    """Return how many times more local steps a client does in a full round than in a round that only measures time.

    A round that only measures time stops each phase of local training after TRIAL_STEPS steps. If rounds have different
    phases, the steps of one round of each kind are added.
    """
    counts = steps_of_kinds(simulation)
    return sum(counts) / sum(min(count, TRIAL_STEPS) for count in counts)


def steps_of_kinds(simulation: Simulation) -> list[int]:
    """Return the number of local steps of each phase, in one round of each kind."""
    settings = simulation.settings
    steps = settings.steps_per_epoch or math.ceil(simulation.data.train.count.max() / settings.batch)
    return [epochs * steps for round in simulation.kinds() for epochs in simulation.epochs(round)]


def memory_of_client(simulation: Simulation, state: State) -> tuple[int, int]:
    """Return the largest memory in bytes that one client takes at a time, and the bytes of all tensors of its step.

    The first is that of the tensors that exist at the same time in a short trial: the parameters that are trained,
    their gradients and the activations. The second is a mean over the steps of the trial; it also counts tensors that
    a step soon frees.
    """
    trial = trial_of(simulation, Execution("loop", 1))
    cohort, share = trial.pools(1)
    with operation_threads(), PeakMemory() as memory:
        for round in trial.kinds():
            trial.local_training(state, round, cohort[:1], share[:1])
    steps = sum(min(count, TRIAL_STEPS) for count in steps_of_kinds(simulation))
    return memory.peak, memory.total // steps


def on_cpu(cohort: int, cores: int, client_bytes: int) -> tuple[list[Execution], list[Execution]]:
    """Return two lists of candidates (ways to compute a run on a CPU): first `vmap` and `loop`, then `batched`.

    They use 1, 2, 4 … cores, and at most `cores`, because a small round is often slower on more cores. Both lists begin
    with the candidates of one core. The clients that train at the same time take at most MAX_BYTES, if each takes
    `client_bytes`, but there is at least one per core. If only one client fits, there is no candidate with `vmap`.
    """
    most, most_of_vmap = (max(1, limit // max(1, client_bytes)) for limit in (MAX_BYTES, MAX_BYTES_OF_VMAP))
    wide = min(cohort, 30, most_of_vmap)
    vmap = ["vmap"] if wide > 1 else []
    plain = [
        Execution("vmap", wide, threads=used) if backend == "vmap" else spread("loop", 1, cohort, used)
        for used in core_counts(cores)
        for backend in [*vmap, "loop"]
    ]
    recorded = [execution for used in core_counts(cores) for execution in batched(cohort, used, most)]
    return list(dict.fromkeys(plain)), list(dict.fromkeys(recorded))


def core_counts(cores: int) -> list[int]:
    """Return the numbers of cores that are tried: 1, 2, 4 … below `cores`, and `cores` itself."""
    return sorted({*(1 << power for power in range(cores.bit_length()) if 1 << power < cores), cores})


def spread(backend: Literal["loop", "batched"], chunk: int, cohort: int, cores: int) -> Execution:
    """Return a candidate with one worker per core, but at most one worker per chunk.

    Cores without a worker become further threads of the workers.
    """
    workers = min(cores, math.ceil(cohort / chunk))
    return Execution(backend, chunk, workers=workers, threads=cores // workers)


def batched(cohort: int, cores: int, most: int) -> list[Execution]:
    """Return candidates of the backend `batched` on a CPU, which differ in chunk size.

    Those with one thread per worker are first, and of these the one with the largest chunk. The workers together train
    at most `most` clients at the same time, but each trains at least one.
    """
    largest = cohort if cohort <= most else max(1, most // cores)
    chunks = {min(chunk, largest) for chunk in (*CHUNKS, math.ceil(cohort / cores), cohort)}
    candidates = [spread("batched", chunk, cohort, cores) for chunk in chunks]
    return sorted(candidates, key=lambda execution: (execution.threads, -execution.chunk))


def on_gpu(cohort: int) -> tuple[list[Execution], list[Execution]]:
    """Return two lists of candidates (ways to compute a run on a GPU): first `vmap` and `loop`, then `batched`.

    All have one worker, because one thread keeps a GPU busy. `vmap` and `batched` train the whole cohort as one chunk;
    `with_room` makes the chunk smaller if the memory is too small.
    """
    plain = [Execution("vmap", cohort), Execution("loop", 1)]
    return plain, [Execution("batched", cohort, graphs=True)]


def fastest(measured: dict[Execution, float], why: str, refused: Sequence[str] = ()) -> Execution:
    """Return the candidate with the fewest cores whose measured time is at most TIE_FACTOR times the shortest time.

    Of several such candidates, the first is returned. A candidate is a backend with a chunk size, a number of workers
    and of threads. `measured` has its seconds per client. The `reason` of the result lists all these times, and why
    other candidates were refused.
    """
    why = "; ".join([*dict.fromkeys(refused), why])
    limit = TIE_FACTOR * min(measured.values())
    tied = [candidate for candidate, seconds in measured.items() if seconds <= limit]
    best = min(tied, key=lambda candidate: candidate.cores)
    table = ", ".join(
        f"{c.backend} {c.chunk} × {c.workers} × {c.threads}: {1e3 * seconds:.2f}" for c, seconds in measured.items()
    )
    return replace(
        best,
        reason=f"{why}, or the fewest cores within {TIE_FACTOR} times of it "
        f"(ms per client, chunk × workers × threads: {table})",
    )


@dataclass(frozen=True)
class Timing:
    """The result of one trial: seconds per client, and the share of them in which other programs kept the cores."""

    seconds: float
    lost_share: float = 0.0

    @property
    def disturbed(self) -> bool:
        return self.lost_share > MAX_LOST_SHARE

    @property
    def possible(self) -> float:
        """The seconds per client that the trial would at least have taken if nothing had disturbed it."""
        return self.seconds * max(0.0, 1 - self.lost_share)


def measure(
    simulation: Simulation, state: State, candidates: Sequence[Execution], refused: list[str] | None = None
) -> dict[Execution, float]:
    """Return, for each candidate, the measured time in seconds for the local training of one client.

    The candidates are timed in turns, so that other work on the machine slows down all of them alike. Disturbed trials
    are repeated. The state does not change. If `refused` is given, candidates that cannot compute the method are left
    out, and the reasons are appended to it.

    Raises:
        Refused: a candidate cannot compute the method, and `refused` is None.
    """
    began = read_clock().wall
    share_per_second = MAX_MEASUREMENT_SHARE * training_seconds(simulation, 1.0)
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
        timings: dict[Execution, list[Timing]] = {candidate: [] for candidate in trials}
        for turn in range(1, 1 + MAX_TRIALS):
            best = min(map(possible, timings.values())) if turn > 1 else math.inf
            slow = best * (HOPELESS_FACTOR if turn <= MIN_TRIALS else SLOW_FACTOR)
            for candidate, trial in trials.items():
                done = timings[candidate]
                if turn == 1 or (len(undisturbed(done)) < TRIALS and possible(done) <= slow):
                    done.append(seconds_per_client(trial, state))
            limit = min(MAX_MEASUREMENT_S, share_per_second * best)
            if turn >= MIN_TRIALS and read_clock().wall - began > limit:
                break
    return {candidate: typical(done) for candidate, done in timings.items()}


def undisturbed(timings: Iterable[Timing]) -> list[Timing]:
    """Return the trials that no other program disturbed."""
    return [timing for timing in timings if not timing.disturbed]


def possible(timings: Iterable[Timing]) -> float:
    """Return the shortest possible time of several trials."""
    return min(timing.possible for timing in timings)


def typical(timings: Sequence[Timing]) -> float:
    """Return the median of the undisturbed trials, or of all trials if each was disturbed."""
    return median(timing.seconds for timing in undisturbed(timings) or timings)


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


def seconds_per_client(trial: Simulation, state: State) -> Timing:
    """Measure how many seconds the local training of one client takes in one round.

    The time is a mean over clients of the first cohort. The number of these clients is large enough to keep all workers
    busy. If rounds have different phases, one round of each kind is timed, and the time is also a mean over the kinds.

    The time of a single thread is its CPU time, which other programs do not change. Several threads also wait for each
    other, so their time is that of the clock, and the result says which share of it was lost to other programs.
    """
    how = trial.execution
    set_threads(how.threads)
    together = how.chunk * how.workers
    cohort, share = trial.pools(1)
    clients, kinds = slice(together * math.ceil(MIN_TRIAL_CLIENTS / together)), trial.kinds()
    wait_for(trial.device)
    began, times = read_clock(), 0
    while times == 0 or read_clock().wall - began.wall < MIN_TRIAL_S:
        for round in kinds:
            trial.local_training(state, round, cohort[clients], share[clients])
            times += 1
    wait_for(trial.device)
    took, trained = read_clock() - began, times * len(cohort[clients])
    if trial.device.type == "cpu" and how.cores == 1:
        return Timing(took.cpu / trained)
    return Timing(took.wall / trained, took.lost_share)

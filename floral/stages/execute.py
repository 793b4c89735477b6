"""Train one run: prepare it, choose how it is computed, train all rounds and write the results."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

from floral.cluster.stops import Stop
from floral.config import code
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.core.process import configure_process, set_threads
from floral.core.spec import Method, Refused
from floral.data.federation import Federation
from floral.engine import checkpoint
from floral.engine.client_data import ClientData
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State
from floral.engine.store import NAME
from floral.runs import layout, reference, segments
from floral.runs.outdated import FORGET, cannot_continue, why_outdated
from floral.stages import record
from floral.stages.assemble import build_method, build_simulation, client_data, make_problem
from floral.stages.choose_execution import configure_device, resolve_execution
from floral.stages.progress import Progress
from floral.stages.progress_line import outcome
from floral.stages.rounds import checkpoint_if_stopped, read_checkpoint, run_rounds, save_checkpoint
from floral.stages.unseen import unseen_table

LOG = logging.getLogger("floral.train")
"""Writes to log.txt in the run's folder."""


def execute(
    run: Run,
    results: Path,
    device: torch.device,
    *,
    backend: str,
    threads: int,
    checkpoint_seconds: float,
    stop: Stop,
    committed_in: Path = reference.REFERENCE,
) -> dict[str, Any]:
    """Train a run to its end, write its result files and return its summary. summary.json is written last.

    A run that has a checkpoint continues from the checkpoint.

    Raises:
        ConfigError: data are missing, the method cannot be used for the task, the device does not support the
            precision, a checkpoint is damaged, or the run began with other code or another precision.
        Stopped: a signal asked the run to stop; a checkpoint was written, unless this was before round 1.
    """
    began, started = time.perf_counter(), time.process_time()
    configure_process(threads)
    folder = results / run.folder
    simulation, data = build_simulation(run, results, device, check_stop=stop.check_stop)
    layout.write_run(folder, run, data.partition_digest, data.data_digest)
    path = folder / "checkpoint" / "last.safetensors"
    trials = 0.0
    if checkpoint.there(path):
        state, progress = read_checkpoint(path, simulation, folder / NAME)
    else:
        configure_device(device, run.precision)
        state = simulation.start(folder / NAME)  # in some methods, all clients compute here
        seedless_hash = run.model_copy(update={"seed": 0}).hash8
        committed = partial(reference.execution_of, run, committed_in)
        how = (backend, threads, run.precision, committed)
        before = time.process_time()
        resolved = resolve_execution(simulation, state, folder, seedless_hash, *how)
        trials = time.process_time() - before
        progress = Progress(execution=asdict(resolved), code=code.digests(run.variant.method, run.task.model.kind))
    _check_resumed(run, progress, path)
    simulation = _with_execution(simulation, progress, path, stop)
    progress.segment = segments.new(folder)
    progress.seconds["setup"] += time.perf_counter() - began
    spent = {"start": started, "data": time.process_time() - started - trials, "trials": trials}
    progress.core_seconds |= {part: progress.core_seconds[part] + seconds for part, seconds in spent.items()}
    run_rounds(simulation, state, progress, path, checkpoint_seconds, stop)
    if state.store is not None:
        save_checkpoint(path, state, progress)  # so that the store's file is complete, and never ahead of a checkpoint
    with checkpoint_if_stopped(path, simulation, state, progress):
        joined = join_unseen(run, simulation, state, progress, data, results) if progress.diverged_at is None else None
        summary = record.write_results(folder, run, simulation, state, progress, data, joined)
    checkpoint.remove(path)
    samples = {"population": "on the global test set", "test": "on own test samples"}[record.headline(run, progress)]
    LOG.info("%s (%s), %.1f s", outcome(summary), samples, sum(progress.seconds.values()))
    return summary


def _check_resumed(run: Run, progress: Progress, path: Path) -> None:
    """Check that the code and the precision are those with which the run began.

    Raises:
        ConfigError: a file of the run's method, model or adaptors has changed, or the precision is another one.
    """
    begun = {"code": progress.code, "execution": progress.execution}
    if reasons := why_outdated(begun, run.variant.method, run.task.model.kind, run.precision):
        remedy = f"remove this checkpoint, or call `{FORGET}`, to train the run from the start"
        raise ConfigError(f"{path}: this run {cannot_continue(reasons, remedy)}")


def _with_execution(simulation: Simulation, progress: Progress, path: Path, stop: Stop) -> Simulation:
    """Return the simulation with the backend, chunk size, threads and precision that are stored in `progress`.

    The threads and the precision are also set for this process. A resumed run is thus computed in the same way as
    before.

    Raises:
        ConfigError: another version of the code wrote the checkpoint `path`, or this device cannot compute the run in
            the stored way.
    """
    try:
        begun_with = Execution(**progress.execution)
    except TypeError as error:
        raise ConfigError(
            f"{path}: another version of the code wrote this checkpoint ({error}); remove the file to train the run "
            "from the start"
        ) from error
    configure_device(simulation.device, begun_with.precision)
    set_threads(begun_with.threads)
    LOG.info("after round %d: %s, %s", progress.round, begun_with, simulation.device)
    try:
        return Simulation(
            simulation.method, simulation.data, simulation.settings, begun_with, check_stop=stop.check_stop
        )
    except Refused as reason:
        raise ConfigError(
            f"{path}: the run began with backend {begun_with.backend}, but {reason}; remove this checkpoint to "
            "train the run from the start"
        ) from None


def join_unseen(
    run: Run,
    simulation: Simulation,
    state: State,
    progress: Progress,
    data: Federation,
    results: Path | None = None,
) -> pl.DataFrame | None:
    """Evaluate a trained run on the clients that join after training, and return the table of their scores.

    Return None if the task has no such clients.
    """

    def assemble_joining(clients: Federation) -> tuple[Method, ClientData]:
        device, dtype = simulation.device, simulation.dtype
        method = build_method(run, make_problem(run, clients, device, dtype, results))
        return method, client_data(clients, method, device, dtype)

    with progress.timed("evaluate"):
        return unseen_table(run, simulation, state, data, assemble_joining)

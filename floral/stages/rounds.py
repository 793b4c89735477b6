"""Train the rounds of a run, evaluate on schedule, and write checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from floral.cluster.stops import Stop, Stopped
from floral.config.reading import ConfigError
from floral.engine import checkpoint
from floral.engine.simulate import Simulation
from floral.engine.state import State
from floral.engine.store import JOURNAL, Store
from floral.runs.quantities import curve_name
from floral.stages.progress import Progress
from floral.stages.provenance import peak_memory

LOG = logging.getLogger("floral.train")
LOGGED_METRICS = ("loss", "accuracy", "ari")
"""The metrics that are written to log.txt."""
SPACES = str.maketrans("/_", "  ")


def run_rounds(
    simulation: Simulation, state: State, progress: Progress, path: Path, checkpoint_seconds: float, stop: Stop
) -> None:
    """Train the remaining rounds of a run, and evaluate on schedule. A run that diverges ends early.

    A checkpoint is written to `path` about every `checkpoint_seconds`.

    Raises:
        Stopped: a signal asked the run to stop, and a checkpoint was written. If the current round could not be
            completed within a few seconds after the signal, the resumed run repeats it.
    """
    saved = time.monotonic()
    with checkpoint_if_stopped(path, simulation, state, progress):
        if not progress.metrics:
            evaluate_round(simulation, state, progress)
        while progress.diverged_at is None and (
            progress.pending_loss is not None or progress.round < simulation.settings.rounds
        ):
            if progress.pending_loss is None:
                train_round(simulation, state, progress)
            evaluate_round(simulation, state, progress)
            if stop.by is not None:
                raise Stopped(stop.by)
            full = state.store is not None and state.store.full
            if full or time.monotonic() - saved > checkpoint_seconds:
                progress.peak_memory_bytes = peak_memory(simulation.device, progress.peak_memory_bytes)
                save_checkpoint(path, state, progress)
                saved = time.monotonic()


def train_round(simulation: Simulation, state: State, progress: Progress) -> None:
    """Train one round, without evaluating it. `evaluate_round` does this next.

    An interrupted round changes neither the state nor the progress.
    """
    round = progress.round + 1
    with progress.timed("train"):
        loss, samples = simulation.train(state, round)
        costs = simulation.costs_of(state, round)
        progress.round, progress.pending_loss = round, loss
        progress.bytes += costs.bytes_per_client * simulation.cohort_size
        progress.client_samples += samples
        progress.client_passes += samples * costs.passes_per_sample


def evaluate_round(simulation: Simulation, state: State, progress: Progress) -> None:
    """Evaluate the current round if the schedule requires it, and record whether the run has diverged.

    The progress changes only after all evaluations of the round are complete. So an interrupted evaluation can be
    repeated.
    """
    settings, round = simulation.settings, progress.round
    evaluation, official = None, None
    with progress.timed("evaluate"):
        if settings.evaluates(round):
            train_loss = None if progress.pending_loss is None else float(progress.pending_loss)
            evaluation = simulation.evaluate(state, round, train_loss)
        if round and settings.sampled_evaluation and settings.last_bin(round):
            official = simulation.official_scores(state, round)
        progress.pending_loss = None
        if evaluation is not None:
            progress.add(evaluation)
            values = ", ".join(
                f"{curve_name(split, metric).translate(SPACES)} {value:.4g}"
                for split, metric, value in evaluation.metrics
                if metric in LOGGED_METRICS
            )
            done = {"rounds_done": round, "rounds": settings.rounds, "values": values}  # for a progress line
            LOG.info("round %d of %d: %s", round, settings.rounds, values, extra=done)
        if official is not None:
            progress.add_official(official)


# ------------------------------------------------------------------------------------------- checkpoints


@contextmanager
def checkpoint_if_stopped(path: Path, simulation: Simulation, state: State, progress: Progress) -> Iterator[None]:
    """Write a checkpoint if the code inside this context raises Stopped, and raise Stopped again."""
    try:
        yield
    except Stopped as stopped:
        progress.peak_memory_bytes = peak_memory(simulation.device, progress.peak_memory_bytes)
        save_checkpoint(path, state, progress)
        LOG.info("%s after round %d; checkpoint written", stopped, progress.round)
        raise


def save_checkpoint(path: Path, state: State, progress: Progress) -> None:
    """Write a checkpoint, and update the file of private values if there is one.

    Private values are parameters that belong to a single client. If they are too large for memory, they are in the file
    private.safetensors. The changed values are written there after the checkpoint is complete.
    """
    tensors = state.checkpoint_tensors()
    checkpoint.write(path, tensors, progress.as_json())
    if state.store is not None:
        state.store.apply(tensors)


def read_checkpoint(path: Path, simulation: Simulation, private: Path) -> tuple[State, Progress]:
    """Return the state and the progress of a run, read from its last undamaged checkpoint.

    `private` is the path of private.safetensors. This file has the private values of the clients if these are too large
    for memory. All other tensors are moved to the device of the simulation.

    Raises:
        ConfigError: both checkpoints are damaged, private.safetensors is damaged, or another version of the code wrote
            the checkpoint.
    """
    try:
        tensors, progress = _last_undamaged(path, private)
        journal = {name: tensors.pop(name) for name in list(tensors) if name.startswith(JOURNAL)}
        store = Store.open(private) if journal else None
    except checkpoint.Unreadable as error:
        raise ConfigError(str(error)) from error
    state = State.of({name: tensor.to(simulation.device) for name, tensor in tensors.items()})
    if store is not None:
        store.apply(journal)
        state.values.update(store.values)
        state.store = store
    try:
        return state, Progress.resumed(progress)
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: another version of the code wrote this checkpoint ({error}); remove the file to train the run "
            "from the start"
        ) from error


def _last_undamaged(path: Path, private: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the progress of the last checkpoint, or of the previous one if the last is damaged.

    If private.safetensors exists, the previous checkpoint cannot be used, because the private values have changed
    since.

    Raises:
        Unreadable: no checkpoint can be read, or the last one is damaged and private.safetensors exists.
    """
    before = checkpoint.before(path)
    try:
        return checkpoint.read(path)
    except checkpoint.Unreadable as damaged:
        if not before.exists() or (path.exists() and private.exists()):
            raise
        tensors, progress = checkpoint.read(before)
        if path.exists():
            LOG.warning("%s; using the one before it, of round %d", damaged, progress["round"])
        before.replace(path)  # otherwise the next checkpoint would replace the only undamaged one
        return tensors, progress

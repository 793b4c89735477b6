"""The training of one run: assemble the simulation, go through the rounds, checkpoint, write the results."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import torch

from floral.cluster.stops import Stop, Stopped
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.core.spec import Method, Noise, Optimiser, Problem, Refused
from floral.data import augment, federation
from floral.data.federation import Federation
from floral.engine import checkpoint, devices, execution
from floral.engine.devices import Precision
from floral.engine.rows import ClientData, Rows
from floral.engine.simulate import Execution, Settings, Simulation
from floral.engine.state import State
from floral.engine.store import JOURNAL, NAME, Store
from floral.runs import layout, segments
from floral.stages import record
from floral.stages.build import method_of
from floral.stages.join import unseen_table
from floral.stages.record import Progress

LOG = logging.getLogger("floral.train")
"""The run's own log, log.txt of its folder."""
DECODED = 256 << 20
"""Bytes up to which training inputs are decoded once, before round 1: a batch is then gathered and nothing else."""
LOGGED = ("loss", "accuracy", "ari")


def execute(
    run: Run,
    results: Path,
    device: torch.device,
    *,
    backend: str,
    precision: str,
    threads: int,
    checkpoint_seconds: float,
    stop: Stop,
) -> dict[str, Any]:
    """Train a run to its end and return its summary, which is written last.

    Raises:
        ConfigError: data are missing, the method cannot do the task or the device the precision, a damaged checkpoint.
        Stopped: asked to stop; a checkpoint was written.
    """
    began = time.perf_counter()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    folder = results / run.folder
    simulation, data = build_simulation(run, results, device)
    layout.write_run(folder, run, data.partition_digest, data.data_digest)
    path = folder / "checkpoint" / "last.safetensors"
    if checkpoint.there(path):
        state, progress = resume(path, simulation, folder / NAME)
    else:
        state = simulation.start(folder / NAME)
        values = run.model_copy(update={"seed": 0}).hash8
        settle(device, precision)
        chosen = resolve_execution(simulation, state, folder, values, backend, threads, precision)
        progress = Progress(execution=asdict(chosen))
    try:
        chosen = Execution(**progress.execution)
    except TypeError as error:
        raise ConfigError(f"{path}: written by another version ({error}); remove it to train from the start") from error
    settle(device, chosen.precision)
    torch.set_num_threads(chosen.threads)
    LOG.info("after round %d: %s, %s", progress.round, chosen, simulation.device)
    try:
        simulation = Simulation(
            simulation.method, simulation.data, simulation.settings, chosen, check_stop=stop.check_stop
        )
    except Refused as reason:
        raise ConfigError(f"{path}: was begun with backend {chosen.backend}, but {reason}; remove it") from None
    progress.segment = segments.new(folder)
    progress.seconds["setup"] += time.perf_counter() - began
    rounds(simulation, state, progress, path, checkpoint_seconds, stop)
    if state.store is not None:
        save(path, state, progress)  # so that the store's file is whole, and never ahead of a checkpoint
    with kept(path, simulation, state, progress):
        joined = join_unseen(run, simulation, state, progress, data) if progress.diverged_at is None else None
        summary = record.write_results(folder, run, simulation, state, progress, data, joined)
    checkpoint.remove(path)
    LOG.info("%s in %.1f s", summary["status"], sum(progress.seconds.values()))
    return summary


def rounds(
    simulation: Simulation, state: State, progress: Progress, path: Path, checkpoint_seconds: float, stop: Stop
) -> None:
    """Every round that is left, evaluated on schedule; stops early when the run diverges.

    Raises:
        Stopped: asked to stop; a checkpoint was written, of the end of a round, or of its training where it was the
            evaluation that took too long.
    """
    settings = simulation.settings
    saved = time.monotonic()
    with kept(path, simulation, state, progress):
        if not progress.metrics:
            evaluate(simulation, state, progress)
        while progress.diverged_at is None and (progress.pending_loss is not None or progress.round < settings.rounds):
            if progress.pending_loss is None:
                train(simulation, state, progress)
            evaluate(simulation, state, progress)
            if stop.by is not None:
                raise Stopped(stop.by)
            full = state.store is not None and state.store.full
            if full or time.monotonic() - saved > checkpoint_seconds:
                progress.peak_memory_bytes = record.peak_memory(simulation, progress)
                save(path, state, progress)
                saved = time.monotonic()


def train(simulation: Simulation, state: State, progress: Progress) -> None:
    """One round, after which its evaluation is owed. Given up, it leaves no trace."""
    began, round = time.perf_counter(), progress.round + 1
    loss, samples = simulation.train(state, round)
    costs = simulation.costs_of(state, round)
    progress.round, progress.pending_loss = round, loss
    progress.bytes += costs.bytes_per_client * simulation.cohort_size
    progress.client_samples += samples
    progress.client_passes += samples * costs.passes_per_sample
    progress.seconds["train"] += time.perf_counter() - began


def evaluate(simulation: Simulation, state: State, progress: Progress) -> None:
    """What is due after the present round, kept when all of it is done; notes a divergence."""
    began, settings, round = time.perf_counter(), simulation.settings, progress.round
    evaluation, official = None, None
    if settings.evaluates(round):
        evaluation = simulation.evaluate(
            state, round, None if progress.pending_loss is None else float(progress.pending_loss)
        )
    if round and settings.sampled_evaluation and settings.last_bin(round):
        official = simulation.official_scores(state, round)
    progress.pending_loss = None
    if evaluation is not None:
        progress.add(evaluation)
        values = ", ".join(
            f"{split} {metric} {value:.4g}" for split, metric, value in evaluation.metrics if metric in LOGGED
        )
        LOG.info("round %d of %d: %s", round, settings.rounds, values)
    if official is not None:
        progress.official.append(official)
    progress.seconds["evaluate"] += time.perf_counter() - began


@contextmanager
def kept(path: Path, simulation: Simulation, state: State, progress: Progress) -> Iterator[None]:
    """Writes a checkpoint when the work within is stopped."""
    try:
        yield
    except Stopped as stopped:
        progress.peak_memory_bytes = record.peak_memory(simulation, progress)
        save(path, state, progress)
        LOG.info("%s after round %d; a checkpoint is written", stopped, progress.round)
        raise


def save(path: Path, state: State, progress: Progress) -> None:
    """Write a checkpoint, and only then what it has of the clients' private state into the store's file."""
    kept = state.kept()
    checkpoint.write(path, kept, progress.as_json())
    if state.store is not None:
        state.store.apply(kept)


def resume(path: Path, simulation: Simulation, private: Path) -> tuple[State, Progress]:
    """State and progress of the last checkpoint that is whole, on the run's device; `private` is the store's file.

    Raises:
        ConfigError: both checkpoints are damaged, or the store's file is.
    """
    try:
        tensors, progress = last_whole(path, private)
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
        return state, Progress.of(progress)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{path}: written by another version ({error}); remove it to train from the start") from error


def last_whole(path: Path, private: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The checkpoint, or the one before it where it is damaged.

    Raises:
        Unreadable: there is none to go back to; a store's file has moved on with the last one.
    """
    before = checkpoint.before(path)
    try:
        return checkpoint.read(path)
    except checkpoint.Unreadable as damaged:
        if not before.exists() or (path.exists() and private.exists()):
            raise
        found = checkpoint.read(before)
        if path.exists():
            LOG.warning("%s; the one before it, of round %d, is used", damaged, found[1]["round"])
        before.replace(path)  # so that the next one does not take the place of the only good one
        return found


# ---------------------------------------------------------------------------------------------- assembly


def assemble(
    run: Run, results: Path, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Simulation, Federation, State]:
    """The simulation of a run at its start, for whoever keeps nothing."""
    simulation, data = build_simulation(run, results, device, dtype)
    return simulation, data, simulation.start()


def join_unseen(
    run: Run, simulation: Simulation, state: State, progress: Progress, data: Federation
) -> pl.DataFrame | None:
    """The table of the clients that join the trained run, if its task has any."""

    def assembled(clients: Federation) -> tuple[Method, ClientData]:
        device, dtype = simulation.device, simulation.dtype
        method = build_method(run, make_problem(run, clients, device, dtype))
        return method, client_data(clients, method, device, dtype)

    began = time.perf_counter()
    table = unseen_table(run, simulation, state, data, assembled)
    progress.seconds["evaluate"] += time.perf_counter() - began
    return table


def build_simulation(
    run: Run, results: Path, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Simulation, Federation]:
    """The simulation of a run, with a plain execution."""
    data = federation.load(run, results)
    problem = make_problem(run, data, device, dtype)
    method = build_method(run, problem)
    return Simulation(method, client_data(data, method, device, dtype), make_settings(run), Execution("loop", 1)), data


def make_problem(run: Run, data: Federation, device: torch.device, dtype: torch.dtype) -> Problem:
    """What the run's method gets to know of its task."""
    task = run.task
    outputs = data.classes if data.classes is not None else data.train_y.shape[1]
    module = importlib.import_module(f"floral.models.{task.model.kind}")

    def build_model(width: float = 1.0) -> Any:
        return module.build(data.shape, outputs, **task.model.arguments, width=width)

    return Problem(
        build_model=build_model,
        clients=data.clients,
        cohort=task.cohort,
        clusters=task.assumed,
        true_cluster=torch.from_numpy(data.cluster).to(device),
        lr=run.rates.lr,
        router_lr=run.rates.router_lr,
        shape=data.shape,
        outputs=outputs,
        batch=task.batch,
        loss=task.objective,
        switches=run.fidelity.switches,
        seed=run.seed,
        dtype=dtype,
        device=device,
    )


def build_method(run: Run, problem: Problem) -> Method:
    """The run's method, or a ConfigError with its reason to refuse the task."""
    try:
        if run.task.unseen and run.variant.params["statistics"] == "private":
            raise Refused("clients that join after training have no running statistics; set statistics: federated")
        return method_of(run.variant, problem)
    except Refused as reason:
        raise ConfigError(f"{run.variant.name} cannot do {run.task.name}: {reason}") from None


def make_settings(run: Run) -> Settings:
    """The task's rounds under the run's fidelity."""
    task, rule = run.task, run.fidelity
    return Settings(
        rounds=task.rounds,
        clusters=task.assumed,
        cohort=task.cohort,
        epochs=task.epochs,
        batch=task.batch,
        steps_per_epoch=task.steps_per_epoch,
        loss=task.objective,
        server=Optimiser(kind=task.server.optimiser, lr=task.server.lr),
        seed=run.seed,
        evaluation_period=task.evaluation_period,
        participation=task.participation,
        reshuffle=rule["batches"] == "reshuffled",
        sampled_evaluation=rule["evaluation"] == "sampled",
        weighting=rule["client_value"],
        empty_cluster=rule["massless_cluster"],
    )


def client_data(data: Federation, method: Method, device: torch.device, dtype: torch.dtype) -> ClientData:
    """The federation as tensors; clients that a method pools train as one learner."""

    def rows(side: Literal["train", "test"], index: np.ndarray, count: np.ndarray, **fields: Any) -> Rows:
        x, y = tensors[side]
        return Rows(x=x, y=y, index=index, count=count, scale=data.scale, dtype=dtype, **normalised, **fields)

    def tensor(array: np.ndarray, target: bool) -> torch.Tensor:
        converted = torch.from_numpy(np.ascontiguousarray(array)).to(device)
        return converted.to(dtype) if target and data.classes is None else converted

    tensors = {
        "train": (tensor(data.train_x, False), tensor(data.train_y, True)),
        "test": (tensor(data.test_x, False), tensor(data.test_y, True)),
    }
    normalised = {}
    if data.normalise is not None:
        values = data.normalise.model_dump()
        normalised = {name: torch.tensor(values[name], dtype=dtype, device=device) for name in ("mean", "std")}
    learner = {None: np.arange(data.clients), "all": np.zeros(data.clients, int), "cluster": data.cluster}[method.pool]
    index, count = data.rows["train"], data.counts["train"]
    if method.pool is not None:
        index, count = pooled(index, count, learner)
    held_out = data.counts["validation"]
    return ClientData(
        train=rows("train", index, count, **augmented(data, device)).decoded(DECODED),
        test=rows("test", data.rows["test"], data.counts["test"]),
        validation=rows("train", data.rows["validation"], held_out) if held_out.any() else None,
        global_test=lambda c: (tensor(data.global_test_x[c], False), tensor(data.global_test_y[c], True)),
        cluster=torch.from_numpy(data.cluster).to(device),
        learner=torch.from_numpy(learner).to(device),
    )


def augmented(data: Federation, device: torch.device) -> dict[str, Any]:
    """The fields of Rows that augment the training images, where the task asks for it."""
    if data.train_turns is None:
        return {}
    turns = torch.from_numpy(data.train_turns).to(device)

    def flip_crop(x: torch.Tensor, row: torch.Tensor, noise: Noise) -> torch.Tensor:
        return augment.flip_crop(x, noise, turns.index_select(0, row))

    return {"augment": flip_crop, "augment_draws": augment.DRAWS}


def pooled(index: np.ndarray, count: np.ndarray, learner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers [U, n_max] and counts [U] of learners that hold the rows of all their clients."""
    held = [
        np.concatenate([index[k, : count[k]] for k in np.flatnonzero(learner == u)]) for u in range(learner.max() + 1)
    ]
    counts = np.array([len(rows) for rows in held])
    padded = np.zeros((len(held), counts.max()), np.int64)
    for u, rows in enumerate(held):
        padded[u, : len(rows)] = rows
    return padded, counts


# --------------------------------------------------------------------------------------------- execution


def resolve_execution(
    simulation: Simulation,
    state: State,
    folder: Path,
    values: str,
    backend: str,
    threads: int,
    precision: str = "fp32",
) -> Execution:
    """The execution of a run: kept with its checkpoints, and beside its folder in a file that all seeds of the same
    `values` (a hash) share, so that a repeated run is bit-equal too. Of processes that measure at once the first one
    decides for all."""
    version = torch.__version__.split("+")[0]
    how = backend if precision == "fp32" else f"{backend}-{precision}"
    name = f"execution-{values}-{simulation.device.type}-{how}-{threads}t-torch{version}.json"
    path = folder.parent / name
    if not path.exists():
        try:
            found = execution.choose(
                simulation, state, cast(execution.Backend, backend), threads, cast(Precision, precision)
            )
        except Refused as reason:
            raise ConfigError(f"backend: {backend} cannot do this method: {reason}; set `backend: auto`") from None
        mine = path.with_name(f"{path.name}.{os.getpid()}")
        mine.write_text(json.dumps(asdict(found)))
        try:
            os.link(mine, path)
        except FileExistsError:
            pass  # another seed was first: its choice holds
        finally:
            mine.unlink()
    try:
        return Execution(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error}); remove it, and the next run measures again") from error


def settle(device: torch.device, precision: str) -> None:
    """Let the device compute in that precision, and the same way every time.

    Raises:
        ConfigError: it cannot.
    """
    try:
        devices.settle(device, cast(Precision, precision))
    except Refused as reason:
        raise ConfigError(f"precision: {precision}: {reason}") from None


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: a round's buffers are as large as the last round's, and fetching them anew
    from the kernel, page by page, took up to half of a round. Elsewhere than on glibc there is nothing to set."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)

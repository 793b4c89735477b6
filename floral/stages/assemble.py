"""Prepare a run for training: load the data, build the method and derive the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from floral.config import networks, plugins
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.task import Task
from floral.core.errors import in_user_code
from floral.core.spec import Method, Noise, Optimiser, Problem, Refused
from floral.core.streams import Stream
from floral.data import augment, federation
from floral.data.federation import Federation
from floral.engine.client_data import ClientData, Rows
from floral.engine.simulate import Execution, Settings, Simulation
from floral.engine.state import State
from floral.nn.model import Model
from floral.stages.build import method_of
from floral.toolkit.local_optimiser import AdamW, with_local_optimiser
from floral.toolkit.prepared import prepared, summary

LOG = logging.getLogger("floral.train")

MAX_DECODED_BYTES = 256 << 20
"""Training inputs up to this size in bytes are decoded once, before round 1."""


def assemble(
    run: Run, results: Path, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Simulation, Federation, State]:
    """Return the simulation of a run, the data of its clients and the state before round 1. No file is written."""
    simulation, data = build_simulation(run, results, device, dtype)
    return simulation, data, simulation.start()


def build_simulation(
    run: Run,
    results: Path,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[Simulation, Federation]:
    """Return the simulation of a run and the data of its clients.

    The simulation trains one client at a time. `resolve_execution` can later choose a faster way, such as several
    clients at once. `check_stop` is called between the steps of the simulation.
    """
    data = federation.load(run, results)
    problem = make_problem(run, data, device, dtype, results)
    method = build_method(run, problem)
    check_token_ids(run.task, problem.build_model().vocabulary, data)
    if run.task.model.kind in ("module", "huggingface") or run.task.base == "frozen":
        for line in summary(problem.build_model()):
            LOG.info("%s", line)
    tensors, how = client_data(data, method, device, dtype), Execution("loop", 1, precision=run.precision)
    return Simulation(method, tensors, make_settings(run), how, check_stop=check_stop), data


def make_problem(
    run: Run, data: Federation, device: torch.device, dtype: torch.dtype, results: Path | None = None
) -> Problem:
    """Return the `Problem` of a run: what the method must know about the task and the data.

    `results` is needed if the model of the task is a pretrained network of config/data.lock.
    """
    outputs = data.classes if data.classes is not None else data.train_y.shape[1]
    cluster = torch.from_numpy(data.cluster).to(device)
    return problem_of(run, data.shape, outputs, cluster, device, dtype, results)


def problem_of(
    run: Run,
    shape: tuple[int, ...],
    outputs: int,
    cluster: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype,
    results: Path | None = None,
) -> Problem:
    """Return the `Problem` of a run, for samples of this shape and a model with this number of outputs.

    `cluster` [K] is the true cluster of each client. The folder `results` has the pretrained networks.

    Raises:
        ConfigError: a network is not fetched.
    """
    task = run.task
    keys = networks.located(task.model, results)
    build = plugins.builder("models", keys.kind)

    @cache
    def built_once(width: float, base: str) -> Model:
        built, stream = build(shape, outputs, **keys.arguments, width=width), Stream(run.seed, "model")
        return prepared(built, keys, base, shape=shape, width=width, stream=stream).moved(device, dtype)

    def build_model(width: float = 1.0, trained: bool = False) -> Model:
        return built_once(width, "trained" if trained else task.base)

    return Problem(
        build_model=build_model,
        clients=len(cluster),
        cohort=task.cohort,
        clusters=task.assumed,
        true_cluster=cluster,
        lr=run.rates.lr,
        router_lr=run.rates.router_lr,
        shape=shape,
        outputs=outputs,
        batch=task.batch,
        loss=task.objective,
        switches=run.fidelity.switches,
        seed=run.seed,
        dtype=dtype,
        device=device,
        frozen_base=task.base == "frozen",
    )


def build_method(run: Run, problem: Problem) -> Method:
    """Build the method of a run.

    Raises:
        ConfigError: the method cannot be used for the task, or its code in the study fails; the message has the reason.
    """
    try:
        if run.task.unseen and run.variant.params["statistics"] == "private":
            raise Refused(
                "clients that join after training have no batch-norm statistics of their own, which `statistics: "
                "private` needs; set `statistics: federated`"
            )
        method, local = method_of(run.variant, problem), run.task.local
        if trains_nothing(method, problem):
            raise Refused(
                "the method trains nothing, because `freeze` names all parameters of the model; leave a layer out of "
                "`freeze`, or use a method with adaptors"
            )
        if local.optimiser == "sgd" or method.phases == ():
            return method
        return with_local_optimiser(method, AdamW(**local.model_dump(exclude={"optimiser"})))
    except Refused as reason:
        raise ConfigError(f"variant {run.variant.name} cannot be used for task {run.task.name}: {reason}") from None
    except Exception as error:
        if isinstance(error, ConfigError) or not plugins.is_of_study("methods", run.variant.method):
            raise
        raise ConfigError(
            f"variant {run.variant.name}: `build` of {plugins.file('methods', run.variant.method)} fails: "
            f"{in_user_code(error)}; correct this code"
        ) from error


def check_token_ids(task: Task, vocabulary: int | None, data: Federation) -> None:
    """Raise ConfigError if a sample has a token id that the model does not have. None as vocabulary allows any."""
    if vocabulary is None:
        return
    largest = max((int(x.max()) for x in (data.train_x, data.test_x) if x.size), default=0)
    if largest >= vocabulary:
        raise ConfigError(
            f"task {task.name!r}: the samples have the token id {largest}, but the model of `model.path: "
            f"{task.model.arguments.get('path')}` has {vocabulary} token ids; make the token ids with the tokenizer of "
            "this model (`data.tokenizer`), or use the model of the tokenizer"
        )


def trains_nothing(method: Method, problem: Problem) -> bool:
    """Return whether a method trains the parameters of a model of which all are frozen."""
    if method.phases == () or problem.build_model().size:
        return False
    trained = method.trained if method.phases is None else [name for phase in method.phases for name in phase.train]
    return not any(method.groups[name].init() for name in trained)


def make_settings(run: Run) -> Settings:
    """Derive the settings of the simulation from the configuration of a run.

    The published FLoRAL code differs in some points from the method in the paper. For each of these points, the
    configuration (`fidelity`) says whether the run follows the code or the paper.
    """
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
    """Move the data of all clients to the device as tensors.

    Some methods pool clients, either all clients or the clients of each true cluster. The clients of a pool train as a
    single client, which has the training samples of all of them. Each client is still evaluated on its own samples.
    """

    def split_rows(side: Literal["train", "test"], index: np.ndarray, count: np.ndarray, **fields: Any) -> Rows:
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
    pool_of_client = {None: np.arange(data.clients), "all": np.zeros(data.clients, int), "cluster": data.cluster}[
        method.pool
    ]
    index, count = data.rows["train"], data.counts["train"]
    if method.pool is not None:
        index, count = pool_samples(index, count, pool_of_client)
    held_out = data.counts["validation"]
    return ClientData(
        train=split_rows("train", index, count, **augmentation(data, device)).decoded(MAX_DECODED_BYTES),
        test=split_rows("test", data.rows["test"], data.counts["test"]),
        validation=split_rows("train", data.rows["validation"], held_out) if held_out.any() else None,
        global_test=lambda c: (tensor(data.global_test_x[c], False), tensor(data.global_test_y[c], True)),
        cluster=torch.from_numpy(data.cluster).to(device),
        pool_of_client=torch.from_numpy(pool_of_client).to(device),
    )


def augmentation(data: Federation, device: torch.device) -> dict[str, Any]:
    """Return the keyword arguments with which `Rows` flips and crops training images.

    The dictionary is empty if the task has no augmentation.
    """
    if data.train_turns is None:
        return {}
    turns = torch.from_numpy(data.train_turns).to(device)

    def flip_crop(x: torch.Tensor, row: torch.Tensor, noise: Noise) -> torch.Tensor:
        return augment.flip_crop(x, noise, turns.index_select(0, row))

    return {"augment": flip_crop, "augment_draws": augment.DRAWS}


def pool_samples(index: np.ndarray, count: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Collect the samples of all clients of each pool. A pool is a set of clients that train as a single client.

    For K clients, `index` [K, n_max] has the indices of each client's samples, padded with 0. `count` [K] has the
    number of samples of each client, and `pool` [K] the index of each client's pool. For U pools, the result has the
    indices of each pool's samples [U, n'_max], padded with 0, and the number of samples of each pool [U].
    """
    samples = [np.concatenate([index[k, : count[k]] for k in np.flatnonzero(pool == u)]) for u in range(pool.max() + 1)]
    counts = np.array([len(numbers) for numbers in samples])
    padded = np.zeros((len(samples), counts.max()), np.int64)
    for u, numbers in enumerate(samples):
        padded[u, : len(numbers)] = numbers
    return padded, counts

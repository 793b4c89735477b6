"""Small federations in memory, on which contracts are tested: clients of unequal size, and two or three clusters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from floral.config import catalogue
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.config.schema.task import Task
from floral.core.spec import Batch, Method, View
from floral.data.federation import Federation
from floral.engine.devices import Precision
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State
from floral.nn.model import Model
from floral.stages.assemble import build_method, client_data, make_problem, make_settings

CPU = torch.device("cpu")
SIZES = (9, 4, 7, 1, 12, 6, 5)
"""Training samples of the clients. Batch size 4 gives one to three steps, most with a short last batch."""
CLASSES = 5


def make_data(
    sizes: tuple[int, ...] = SIZES,
    *,
    shape: tuple[int, ...] = (4, 4),
    clusters: int = 2,
    regression: bool = False,
    text: bool = False,
    outputs: int = CLASSES,
    seed: int = 0,
) -> Federation:
    """Return random samples with learnable labels, which a linear teacher per cluster gives.

    `sizes` [K] are the numbers of training samples. Each client has 2, 5 or 8 test samples and one validation sample.
    Inputs have the shape `shape`: images uint8 from 0 to 16; for regression, float32; for text, token ids, of which
    token x is followed by x + 1 + c in cluster c. `outputs` is the number of classes, targets or tokens.
    """
    random = np.random.default_rng(seed)
    clients = len(sizes)
    cluster = np.arange(clients) % clusters
    teacher = random.normal(size=(clusters, int(np.prod(shape)), outputs))

    def samples(of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if text:
            x = random.integers(0, outputs, (len(of_row), *shape))
            return x.astype(np.uint8), (x + 1 + of_row[:, None]) % outputs
        x = random.normal(size=(len(of_row), *shape)) if regression else random.integers(0, 17, (len(of_row), *shape))
        y = np.einsum("ni,nio->no", x.reshape(len(x), -1) / (4 if regression else 16), teacher[of_row])
        return (x.astype(np.float32), y.astype(np.float32)) if regression else (x.astype(np.uint8), y.argmax(1))

    def deal(counts: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = np.zeros((clients, counts.max()), np.int64)
        for k, count in enumerate(counts):
            index[k, :count], free = free[:count], free[count:]
        return index, free

    counts = {"train": np.array(sizes), "validation": np.ones(clients, int), "test": 2 + np.arange(clients) % 3 * 3}
    stored = int((counts["train"] + counts["validation"]).sum())
    train_index, rest = deal(counts["train"], random.permutation(stored))
    validation_index, _ = deal(counts["validation"], rest)
    test_index, _ = deal(counts["test"], random.permutation(int(counts["test"].sum())))
    rows = {"train": train_index, "validation": validation_index, "test": test_index}

    def owners(splits: tuple[str, ...], size: int) -> np.ndarray:
        of_row = np.zeros(size, int)
        for split in splits:
            for k in range(clients):
                of_row[rows[split][k, : counts[split][k]]] = cluster[k]
        return of_row

    train_x, train_y = samples(owners(("train", "validation"), stored))
    test_x, test_y = samples(owners(("test",), int(counts["test"].sum())))
    global_test = [samples(np.full(11, c)) for c in range(clusters)]
    return Federation(
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        rows=rows,
        counts=counts,
        cluster=cluster,
        clusters=clusters,
        classes=None if regression else outputs,
        scale=1 if regression or text else 16,
        exact=True,
        partition_digest="",
        make_global_test=lambda: (np.stack([x for x, _ in global_test]), np.stack([y for _, y in global_test])),
    )


def make_run(
    variant: str,
    *,
    model: Mapping[str, Any],
    clients: int = len(SIZES),
    clusters: int = 2,
    fidelity: Any = "corrected",
    switches: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    data: str | Synthetic = "none",
    **task: Any,
) -> Run:
    """Return a run of a variant on a small task. `task` changes values of the task, `params` hyper-parameters.

    `model` has the keys of a task's `model`.
    """
    values = {"participation": 0.75, "rounds": 4, "batch": 4, "lr": 0.1, "router_lr": 0.1, "eval_every": 1, **task}
    tiny = Task(name="tiny", title="Tiny", data=data, clients=clients, clusters=clusters, model=model, **values)  # type: ignore[arg-type]
    rules = catalogue.fidelity(fidelity, switches)
    return Run(task=tiny, variant=catalogue.variant(variant, params), seed=seed, fidelity=rules)


def simulate(
    variant: str,
    data: Federation,
    *,
    model: Mapping[str, Any],
    build_model: Callable[..., Model] | None = None,
    text: bool = False,
    change: Callable[[Method], Method] = lambda method: method,
    dtype: torch.dtype = torch.float64,
    backend: Literal["loop", "vmap", "batched"] = "loop",
    chunk: int = 1,
    workers: int = 1,
    precision: Precision = "fp32",
    graphs: bool = False,
    device: torch.device = CPU,
    kind: type[Simulation] = Simulation,
    check_stop: Callable[[], None] = lambda: None,
    **run: Any,
) -> Simulation:
    """Return the simulation of a variant on these data, assembled as the stage train does.

    `build_model(width)` replaces the function that builds the model, and `change` may replace the method. `run` has
    further arguments of `make_run`.

    Raises:
        ConfigError: the method cannot be used for this model.
        Refused: the backend cannot compute this method and model.
    """
    run = {"clients": data.clients, "clusters": data.clusters, **run}
    if text:
        run |= {"per": "token"}
    if data.classes is None:
        run |= {"loss": "mse", "data": Synthetic(kind="linear", samples_per_client=2)}
    described = make_run(variant, model=model, **run)
    problem = make_problem(described, data, device, dtype)
    if build_model is not None:
        problem = replace(problem, build_model=lambda width=1.0, trained=False: build_model(width))
    method = change(build_method(described, problem))
    tensors = client_data(data, method, device, dtype)
    how = Execution(backend, chunk, workers, precision=precision, graphs=graphs)
    return kind(method, tensors, make_settings(described), how, check_stop=check_stop)


def train(simulation: Simulation, rounds: int = 3) -> State:
    """Train for `rounds` rounds, or for all rounds of the task if it has fewer, and return the state."""
    state = simulation.start()
    for round in range(1, min(rounds, simulation.settings.rounds) + 1):
        simulation.train(state, round)
    return state


def served(simulation: Simulation, state: State) -> list[torch.Tensor]:
    """Return every client's outputs [8, outputs] on the same 8 inputs."""
    method, data = simulation.method, simulation.data
    x = data.test.decode(data.test.x[:8])
    with torch.no_grad():
        return [method.predict(view_of(simulation, state, client), x, None, None)[0] for client in range(data.clients)]


def view_of(simulation: Simulation, state: State, client: int) -> View:
    """Return the values with which one client predicts: those of each group's scope, then `before_predictions`."""
    method, pool = simulation.method, int(simulation.data.pool_of_client[client])
    seen = {}
    for name, group in method.groups.items():
        clusters = method.routing.cluster_of_client
        at = {"private": pool, "clustered": None if clusters is None else int(clusters[client])}
        row = at.get(group.scope.value)
        seen[name] = state.values[name] if row is None else {key: t[row] for key, t in state.values[name].items()}
    if method.before_predictions is not None:
        held = simulation.data.train.of_clients(np.array([pool]))
        seen |= method.before_predictions(seen, Batch(held.x[0], held.y[0], held.mask[0]))
    return seen

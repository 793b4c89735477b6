"""Small federations in memory: clients of unequal size, two or three clusters, tiny models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from floral.config import catalogue, plugins
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.config.schema.suite import Fidelity
from floral.config.schema.task import Task
from floral.core.spec import Method
from floral.data.federation import Federation
from floral.engine.devices import Precision
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State
from floral.nn.layers import Conv2d, ConvTranspose2d, Dropout, Linear, scaled_units
from floral.nn.model import Model
from floral.stages.assemble import build_method, client_data, make_problem, make_settings
from floral.stages.check_model import example_arguments

torch.set_num_threads(1)  # With tiny tensors threads only cost time.
torch.set_flush_denormal(True)  # as the train stage does

CPU = torch.device("cpu")
SIZES = (9, 4, 7, 1, 12, 6, 5)
"""Training samples of the clients. Batch size 4 gives one to three steps, most with a short last batch."""
CLASSES = 5

SHAPES: Mapping[str, tuple[int, ...]] = {
    "cnn": (14, 14), "vgg8": (32, 32), "resnet18": (8, 8), "lstm": (3,), "tied": (3,), "transformer": (3,),
}  # fmt: skip
TEXT = {"lstm", "tied", "transformer"}
"""Models whose inputs are token ids."""
ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "mlp": {"hidden": 5},
    "cnn": {"channels": (2, 3), "hidden": 4},
    "vgg8": {"channels": (2, 3, 4, 5, 6), "hidden": 4},
    "resnet18": {"channels": (2, 2, 3, 4), "groups": 1},
    "vit": {"patch": 2, "features": 4, "heads": 2, "depth": 1, "hidden": 5, "dropout": 0.3},
    "lstm": {"features": 2, "hidden": 3, "adapt_embedding": True},
    "tied": {"features": 2, "hidden": 3, "depth": 1, "tied": True},
    "transformer": {"features": 4, "heads": 2, "depth": 1, "hidden": 5},
    "batch_norm": {"hidden": 5, "batch_norm": True},
    "dropout": {"hidden": 5},
    "convolutions": {"hidden": 5},
    "module": {"build": f"{Path(__file__).parent / 'modules' / 'plain.py'}:small"},
}
"""Arguments for a tiny size of each model. A model without a row here gets values where it has no defaults."""
KINDS = {"batch_norm": "mlp", "dropout": "mlp", "convolutions": "mlp", "tied": "lstm"}
NAMES = [name for name in plugins.names("models") if name != "huggingface"]
"""Every file of floral/models except one that needs a pretrained model (tests/modules/test_huggingface.py)."""
MODELS = [*NAMES, "batch_norm", "dropout", "convolutions"]
"""All of NAMES, and models with running statistics, with noise per sample, and with grouped, dilated and
transposed convolutions."""
DROPPING = ("dropout", "vgg8", "vit")
"""Models with dropout."""
VARIANTS = list(catalogue.variant_index())
NOT_TUNED = ("methods_full",)
"""Suites without runs, because their searches take days."""


def with_dropout(width: float = 1.0) -> Model:
    """4×4 → 5·width → dropout → CLASSES."""
    hidden = scaled_units(5, width)

    def forward(call, x):
        return call("out", call("dropped", torch.relu(call("hidden", x.flatten(1)))))

    layers = {"hidden": Linear(16, hidden), "dropped": Dropout((hidden,), 0.3), "out": Linear(hidden, CLASSES)}
    return Model(layers=layers, forward=forward)


def with_convolutions(width: float = 1.0) -> Model:
    """4×4 → conv → grouped and dilated conv → transposed conv → CLASSES. No file of floral/models has such layers."""
    channels = 2 * scaled_units(2, width)

    def forward(call, x):
        x = call("wide", torch.relu(call("grouped", torch.relu(call("conv", x.unsqueeze(1))))))
        return call("out", torch.relu(x).flatten(1))

    layers = {
        "conv": Conv2d(1, channels, (3, 3), padding=(1, 1)),
        "grouped": Conv2d(channels, channels, (3, 3), padding=(1, 1), dilation=(2, 2), groups=2),
        "wide": ConvTranspose2d(channels, 2, (3, 3), stride=(3, 3)),
        "out": Linear(2 * 6 * 6, CLASSES),
    }
    return Model(layers=layers, forward=forward)


OWN = {"dropout": with_dropout, "convolutions": with_convolutions}
"""Models that exist in the tests only."""


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
    """A federation of random samples with learnable labels, which a linear teacher per cluster gives.

    In text, token x is followed by x + 1 + c in cluster c.
    Clients have 2, 5 or 8 test samples and one validation sample. A client's samples lie anywhere in the arrays.
    """
    random = np.random.default_rng(seed)
    clients = len(sizes)
    cluster = np.arange(clients) % clusters
    teacher = random.normal(size=(clusters, int(np.prod(shape)), outputs))

    def made(of_row):
        if text:
            x = random.integers(0, outputs, (len(of_row), *shape))
            return x.astype(np.uint8), (x + 1 + of_row[:, None]) % outputs
        x = random.normal(size=(len(of_row), *shape)) if regression else random.integers(0, 17, (len(of_row), *shape))
        y = np.einsum("ni,nio->no", x.reshape(len(x), -1) / (4 if regression else 16), teacher[of_row])
        return (x.astype(np.float32), y.astype(np.float32)) if regression else (x.astype(np.uint8), y.argmax(1))

    def dealt(counts, free):
        index = np.zeros((clients, counts.max()), np.int64)
        for k, count in enumerate(counts):
            index[k, :count], free = free[:count], free[count:]
        return index, free

    counts = {"train": np.array(sizes), "validation": np.ones(clients, int), "test": 2 + np.arange(clients) % 3 * 3}
    held = int((counts["train"] + counts["validation"]).sum())
    train_index, left = dealt(counts["train"], random.permutation(held))
    validation_index, _ = dealt(counts["validation"], left)
    test_index, _ = dealt(counts["test"], random.permutation(int(counts["test"].sum())))
    rows = {"train": train_index, "validation": validation_index, "test": test_index}

    def owners(splits, size):
        of_row = np.zeros(size, int)
        for split in splits:
            for k in range(clients):
                of_row[rows[split][k, : counts[split][k]]] = cluster[k]
        return of_row

    train_x, train_y = made(owners(("train", "validation"), held))
    test_x, test_y = made(owners(("test",), int(counts["test"].sum())))
    global_test = [made(np.full(11, c)) for c in range(clusters)]
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
    variant: str = "fedavg",
    *,
    clients: int = len(SIZES),
    clusters: int = 2,
    model: str | Mapping[str, Any] = "mlp",
    fidelity: str = "corrected",
    switches: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    data: str | Synthetic = "none",
    **task: Any,
) -> Run:
    """A run on a task that exists in the tests only. `task` changes its values.

    `model` is a name of MODELS, or the keys of a model in YAML.
    """
    values = {"participation": 0.75, "rounds": 4, "batch": 4, "lr": 0.1, "router_lr": 0.1, "eval_every": 1, **task}
    if isinstance(model, str):
        name = KINDS.get(model, model)
        model = {"kind": name, **(ARGUMENTS[model] if model in ARGUMENTS else example_arguments(name))}
    tiny = Task(name="tiny", title="Tiny", data=data, clients=clients, clusters=clusters, model=model, **values)
    rules: Fidelity = catalogue.fidelity(fidelity, switches)
    return Run(task=tiny, variant=catalogue.variant(variant, params), seed=seed, fidelity=rules)


def simulate(
    variant: str = "fedavg",
    *,
    model: str | Mapping[str, Any] | None = None,
    data: Federation | None = None,
    change: Callable[[Method], Method] = lambda method: method,
    dtype: torch.dtype = torch.float64,
    backend: str = "loop",
    chunk: int = 1,
    workers: int = 1,
    precision: Precision = "fp32",
    graphs: bool = False,
    device: torch.device = CPU,
    kind: type[Simulation] = Simulation,
    check_stop: Callable[[], None] = lambda: None,
    **run: Any,
) -> Simulation:
    """The simulation of a variant, assembled as the train stage does.

    `change` may replace the method. The default model is the first that the method supports.
    """
    model = model or fitting(variant)
    name = model if isinstance(model, str) else "module"
    if data is None:
        data = make_data(shape=SHAPES.get(name, (4, 4)), clusters=run.get("clusters", 2), text=name in TEXT)
    run = {"clients": data.clients, "clusters": data.clusters, **run}
    if name in TEXT:
        run |= {"per": "token"}
    if data.classes is None:
        run |= {"loss": "mse", "data": Synthetic(kind="linear", samples_per_client=2)}
    made = make_run(variant, model=model, **run)
    problem = make_problem(made, data, device, dtype)
    if name in OWN:
        problem = replace(problem, build_model=OWN[name])
    method = change(build_method(made, problem))
    tensors = client_data(data, method, device, dtype)
    how = Execution(backend, chunk, workers, precision=precision, graphs=graphs)
    return kind(method, tensors, make_settings(made), how, check_stop=check_stop)


def train(simulation: Simulation, rounds: int = 3) -> State:
    """Train for `rounds` rounds, or for all rounds of the task if it has fewer. Returns the state."""
    state = simulation.start()
    for round in range(1, min(rounds, simulation.settings.rounds) + 1):
        simulation.train(state, round)
    return state


def trained(variant: str = "fedavg", rounds: int = 3, **how: Any) -> State:
    return train(simulate(variant, **how), rounds)


def trained_base(variant: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parameters, with `base: joint` unless they state the base: all rounds then train the adaptors, too."""
    joint = {"base": "joint"} if "base" in catalogue.variant(variant).params else {}
    return joint | dict(params or {})


def served(simulation: Simulation, state: State) -> list[torch.Tensor]:
    """Every client's outputs on a common batch of inputs."""
    method, data = simulation.method, simulation.data
    x = data.test.decode(data.test.x[:8])
    with torch.no_grad():
        return [method.predict(view_of(simulation, state, client), x, None, None)[0] for client in range(data.clients)]


def view_of(simulation: Simulation, state: State, client: int) -> dict[str, dict[str, torch.Tensor]]:
    """The values that one client sees, gathered according to each group's scope."""
    method, pool = simulation.method, int(simulation.data.pool_of_client[client])
    seen = {}
    for name, group in method.groups.items():
        clusters = method.routing.cluster_of_client
        at = {"private": pool, "clustered": None if clusters is None else int(clusters[client])}
        row = at.get(group.scope.value)
        seen[name] = state.values[name] if row is None else {key: t[row] for key, t in state.values[name].items()}
    return seen


def assert_equal_states(ours: State, other: State, tolerance: float) -> None:
    """Check that all tensors of both states agree, including the server's moments."""
    assert_close(ours.tensors(), other.tensors(), tolerance)


def assert_close(ours: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """Check that every tensor agrees within `tolerance` · max(1, its largest absolute value)."""
    assert set(ours) == set(other)
    for name, tensor in ours.items():
        scale = max(1.0, float(tensor.abs().max()) if tensor.numel() else 0.0)
        torch.testing.assert_close(
            tensor, other[name], rtol=0, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@cache
def fitting(variant: str) -> str:
    """The first model that the variant supports; MLP and MLP with batch norm come first."""
    return next((model for model in ("mlp", "batch_norm", *MODELS) if buildable(variant, model)), "mlp")


def buildable(variant: str, model: str) -> bool:
    """Whether the method supports the model. test_declarations.py checks the reasons of refusals."""
    try:
        simulate(variant, model=model)
    except ConfigError:
        return False
    return True


FIRST = {name: next(iter(catalogue.method_file(name).variants)) for name in plugins.names("methods")}
"""The variant of each method that is tested on all models. Its other variants differ by parameters only."""


DEEP = ("resnet18", "vit", "convolutions", "module")
"""Models that take seconds to record, or have rare layers, or differ from declared models in the forward pass alone.

Only OF_EACH_KIND is tested on them."""
SHALLOW = [model for model in MODELS if model not in DEEP]
"""The models of tests that prove a limit case of a method. The engine is tested on all models (`cases`)."""
OF_EACH_KIND = ("fedavg", "ditto", "ensemble", "floral_1", "local_adaptor", "private_norm")
"""The variants that are tested on the models of DEEP."""


def cases() -> list[tuple[str, str]]:
    """Pairs (variant, model): the first variant of each method on all models that it supports.

    Its other variants are tested on one small model and on `batch_norm`.
    """
    few = {variant: {fitting(variant), "batch_norm"} for variant in VARIANTS if variant not in FIRST.values()}
    return [
        (variant, model)
        for variant in VARIANTS
        for model in MODELS
        if model in few.get(variant, MODELS)
        and (model not in DEEP or variant in OF_EACH_KIND)
        and buildable(variant, model)
    ]


def few_cases() -> list[tuple[str, str]]:
    """Fewer pairs than `cases`, for tests that depend little on the model: all models for OF_EACH_KIND only."""
    return [
        (variant, model)
        for variant, model in cases()
        if variant in OF_EACH_KIND or model in (fitting(variant), "batch_norm")
    ]

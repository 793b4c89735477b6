"""The project's methods and an independent implementation, witness.py, have equal accuracies on the same clients.

`python tests/witness/make.py` writes accuracies.json with the numbers of the witness.
"""

from __future__ import annotations

import ast
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import torch
import witness

from floral.config import catalogue
from floral.config.run import Run
from floral.config.schema.data import CustomData
from floral.config.schema.partition import Partition
from floral.config.schema.task import Model, Task
from floral.data import federation
from floral.engine.simulate import Execution, Simulation
from floral.stages.assemble import build_simulation
from floral.stages.fetch import fetch
from floral.stages.partition import partition

MAX_DIFFERENCE = 1.5
"""Of the mean accuracies over the seeds, in percentage points."""
MAX_ROUNDING = 0.5
"""Of an accuracy that the witness computes again, perhaps with other libraries: at most 4 of the 941 test samples."""
WRITTEN = json.loads(make.FILE.read_text())
SETTINGS = witness.Settings(**WRITTEN["settings"])
ACCURACIES = WRITTEN["accuracies"]
LIBRARIES = {"__future__", "collections", "copy", "dataclasses", "json", "numpy", "pathlib", "sklearn", "torch"}
BATCH_NORM = ("fedavg_batch_norm", "fedbn", "private_statistics")


def variant_of(method: str) -> tuple[str, dict[str, Any]]:
    """The project's variant of a method of the witness, and its hyper-parameters."""
    variants = {
        "fedavg_batch_norm": ("fedavg", {}),
        "fedprox": ("fedprox", {"mu": SETTINGS.fedprox_mu}),
        "fedavg_finetune": ("fedavg_finetune", {"after": SETTINGS.finetune_after}),
        "ditto": ("ditto", {"lam": SETTINGS.ditto_lambda}),
        "fedrep": ("fedrep", {"head_epochs": SETTINGS.fedrep_head_epochs}),
        "apfl": ("apfl", {"alpha": SETTINGS.apfl_alpha}),
        "pfedme": ("pfedme", {"lam": SETTINGS.pfedme_lambda, "inner_steps": SETTINGS.pfedme_inner_steps}),
        "feddbe": ("feddbe", {"kappa": SETTINGS.feddbe_kappa, "share": SETTINGS.feddbe_momentum}),
        "fedbn": ("private_norm", {}),
        "private_statistics": ("fedavg", {"statistics": "private"}),
    }
    return variants.get(method, (method, {}))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as custom data: the samples of the split, and the names of their clients."""
    (x, y), split = witness.digits(), witness.read_split()
    values = {}
    for side in ("train", "test"):
        rows = [client[side] for client in split]
        values[f"{side}_x"], values[f"{side}_y"] = x[np.concatenate(rows)], y[np.concatenate(rows)]
        values[f"{side}_client"] = np.repeat(
            [f"client {k:02}" for k in range(len(split))], [len(part) for part in rows]
        )
    path = tmp_path_factory.mktemp("witness") / "digits.npz"
    np.savez(path, **values)
    return path


def make_run(method: str, seed: int, arrays: Path) -> Run:
    """A run of the project's variant of the method on the clients of the witness, with data and partition stored."""
    name, params = variant_of(method)
    task = Task(
        name="witness",
        title="Clients of the witness",
        data=CustomData(kind="arrays", path=str(arrays)),
        partition=Partition(kind="natural", min_rows=1, validation=0),
        clients=len(witness.read_split()),
        clusters=1,
        participation=1.0,
        rounds=SETTINGS.rounds,
        epochs=SETTINGS.epochs,
        batch=SETTINGS.batch,
        lr=SETTINGS.lr,
        router_lr=SETTINGS.lr,
        model=Model(kind="mlp", hidden=SETTINGS.hidden, batch_norm=method in BATCH_NORM),
    )
    fidelity = catalogue.fidelity("corrected")
    run = Run(task=task, variant=catalogue.variant(name, params), seed=seed, fidelity=fidelity)
    fetch(task.data, arrays.parent)
    partition(run.partition, arrays.parent)
    return run


def accuracy(run: Run, results: Path) -> float:
    """Train all rounds, and return the percentage of all clients' test samples that their own models classify."""
    torch.set_num_threads(1)
    plain, data = build_simulation(run, results, torch.device("cpu"))
    simulation = Simulation(plain.method, plain.data, plain.settings, Execution("batched", data.clients))
    state = simulation.start()
    for round in range(1, run.task.rounds + 1):
        simulation.train(state, round)
    scores = simulation.own_rows(state, simulation.data.test, np.arange(data.clients))
    return 100 * scores.correct.sum() / scores.rows.sum()


# ------------------------------------------------------------------------------------------- the witness


@pytest.mark.parametrize(("module", "more"), [(witness, set()), (make, {"platform", "typing", "witness"})])
def test_the_witness_imports_nothing_of_the_project(module: Any, more: set[str]) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= LIBRARIES | more
    assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"__import__", "exec", "eval"}


def test_the_split_deals_every_row_once() -> None:
    rows = [row for client in witness.read_split() for side in ("train", "test") for row in client[side]]
    assert sorted(rows) == list(range(len(witness.digits()[1])))
    assert min(len(client.y) for client in witness.clients_of_split()) >= 8


def test_the_written_numbers_belong_to_the_settings_and_the_methods_of_the_witness() -> None:
    assert WRITTEN["settings"] == asdict(witness.Settings()), "call python tests/witness/make.py"
    assert list(ACCURACIES) == list(witness.METHODS) and WRITTEN["seeds"] == list(make.SEEDS)


@pytest.mark.parametrize("method", witness.METHODS)
def test_the_witness_computes_its_first_rounds_again(method: str) -> None:
    few = witness.Settings(**{**WRITTEN["settings"], "rounds": WRITTEN["few_rounds"]})
    assert abs(witness.accuracy(method, make.SEEDS[0], few) - ACCURACIES[method]["few_rounds"]) <= MAX_ROUNDING


def test_the_witness_computes_all_rounds_of_fedavg_again() -> None:
    again = witness.accuracy("fedavg", make.SEEDS[0], SETTINGS)
    assert abs(again - ACCURACIES["fedavg"]["all_rounds"][0]) <= MAX_ROUNDING


@pytest.mark.parametrize(
    ("method", "limits"),
    [
        ("local", ["fedavg"]),
        ("fedavg_finetune", ["fedavg", "local"]),
        ("ditto", ["fedavg", "local"]),
        ("apfl", ["fedavg"]),
        ("pfedme", ["fedavg", "local"]),
        ("feddbe", ["fedavg"]),
        ("fedper", ["fedavg"]),
        ("fedrep", ["fedavg"]),
        ("fedbn", ["fedavg_batch_norm"]),
        ("private_statistics", ["fedavg_batch_norm", "fedbn"]),
    ],
)
def test_a_method_that_is_one_of_its_limiting_cases_would_be_noticed(method: str, limits: list[str]) -> None:
    """On these clients FedProx is within the bound of FedAvg, and FedRep of FedPer: the contracts tell them apart."""
    mean = {name: np.mean(values["all_rounds"]) for name, values in ACCURACIES.items()}
    assert min(abs(mean[method] - mean[limit]) for limit in limits) > MAX_DIFFERENCE


# ------------------------------------------------------------------------------------------- the project


def test_the_project_has_the_clients_of_the_witness(arrays: Path) -> None:
    data = federation.load(make_run("fedavg", 0, arrays), arrays.parent)
    assert not data.counts["validation"].any()
    for k, client in enumerate(witness.clients_of_split()):
        for side, x, y in (("train", client.x, client.y), ("test", client.test_x, client.test_y)):
            rows = data.rows[side][k, : data.counts[side][k]]
            held = zip(getattr(data, f"{side}_x")[rows], getattr(data, f"{side}_y")[rows], strict=True)
            expected = zip(x.numpy(), y.tolist(), strict=True)
            assert sorted((a.tobytes(), int(b)) for a, b in held) == sorted((a.tobytes(), b) for a, b in expected)


@pytest.mark.parametrize("method", witness.METHODS)
def test_the_project_and_the_witness_agree(method: str, arrays: Path) -> None:
    project = [accuracy(make_run(method, seed, arrays), arrays.parent) for seed in make.SEEDS]
    assert abs(np.mean(project) - np.mean(ACCURACIES[method]["all_rounds"])) <= MAX_DIFFERENCE, (project, method)

"""Cost of a round against the number of clients K: seconds and resident memory at one cohort size M.

The federation lives in memory and is made for this purpose: an MLP on MNIST's rows, client k holding the rows 10k …
10k + 9 modulo 60,000. So clients share rows, which changes neither the cost of a round nor the private state.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from floral.bench import timing
from floral.bench.contenders import EngineRounds, prepare, settle
from floral.bench.processes import in_own_process
from floral.config import catalogue
from floral.config.run import Run
from floral.config.schema.task import Task
from floral.data.federation import Federation, read_data
from floral.engine.simulate import Execution, Simulation
from floral.stages import execute

CLIENTS = (10, 100, 1_000, 10_000, 100_000)
VARIANTS = ("fedavg", "floral_1", "local_adaptor")
COHORT, ROWS = 30, 10
FEW, MANY = 1_000, 100_000
"""The two K whose seconds per round are compared."""
ROUNDS = 30
"""Rounds after which memory is read."""


def scale_run(clients: int, variant: str) -> Run:
    """A cohort of 30 (of 10 if there are no more) out of K clients; one step of ten rows each."""
    cohort = min(COHORT, clients)
    task = Task(
        name="scale",
        title="MLP 784→200→10, clients that share MNIST's rows",
        data="mnist",
        clients=clients,
        clusters=4,
        participation=cohort / clients,
        rounds=1000,
        batch=32,
        lr=0.1,
        router_lr=0.1,
        model={"kind": "mlp", "hidden": 200},  # type: ignore[arg-type]
    )
    return Run(task=task, variant=catalogue.variant(variant), seed=0, fidelity=catalogue.fidelity("corrected"))


def federation_of(run: Run, results: Path) -> Federation:
    """The rows of MNIST, dealt out again and again; every client's test row is one of 10,000."""
    _, arrays = read_data("mnist", results)
    arrays = {side: np.array(array) for side, array in arrays.items()}
    clients = np.arange(run.task.clients)
    train = (ROWS * clients[:, None] + np.arange(ROWS)) % len(arrays["train_x"])
    rows = {"train": train, "validation": train[:, :1], "test": clients[:, None] % len(arrays["test_x"])}
    held = {"train": ROWS, "validation": 0, "test": 1}
    return Federation(
        train_x=arrays["train_x"],
        train_y=arrays["train_y"],
        test_x=arrays["test_x"],
        test_y=arrays["test_y"],
        rows=rows,
        counts={split: np.full(len(clients), count) for split, count in held.items()},
        cluster=clients % run.task.clusters,
        clusters=run.task.clusters,
        classes=10,
        scale=255,
        exact=True,
        partition_digest="",
        make_global_test=lambda: (_ for _ in ()).throw(AssertionError("nothing is evaluated")),
    )


def contender(
    clients: int, variant: str, results: Path, backend: str, threads: int, chosen: Execution | None = None
) -> EngineRounds:
    """The engine on K clients, with an execution of its own or one that is given."""
    run = scale_run(clients, variant)
    data = federation_of(run, results)
    cpu = torch.device("cpu")
    method = execute.build_method(run, execute.make_problem(run, data, cpu, torch.float32))
    tensors = execute.client_data(data, method, cpu, torch.float32)
    simulation = Simulation(method, tensors, execute.make_settings(run), Execution("loop", 1))
    return EngineRounds(simulation, simulation.start(), backend, threads, chosen)


# ---------------------------------------------------------------------------------------------- measured


def scale(
    *,
    results: Path,
    data_dir: Path | None,
    backend: str,
    threads: int,
    rounds: int | None,
    clients: Iterable[int] = CLIENTS,
    compared: tuple[int, int] = (FEW, MANY),
    say: Any = print,
) -> dict[str, Any]:
    """{"points": one for each K and method, "ratios": seconds per round at `compared` K, by method}.

    Raises:
        ConfigError: MNIST's files are missing.
    """
    prepare([], results, data_dir, also=["mnist"])
    points, ratios = [], {}
    for variant in VARIANTS:
        chosen = in_own_process(execution_of, variant, results, backend, threads, compared[0])
        for count in clients:
            points.append(in_own_process(point, count, variant, results, backend, threads, rounds, chosen))
            say(f"scale: {variant} K = {count}: {1e3 * points[-1]['seconds_per_round']:.2f} ms a round")
        ratios[variant] = in_own_process(ratio, variant, results, backend, threads, rounds, compared, chosen)
        say(f"scale: {variant} K = {compared[1]} to {compared[0]}: {ratios[variant]['ratio']:.3f}")
    return {"cohort": COHORT, "clients": list(clients), "compared": list(compared), "points": points, "ratios": ratios}


def execution_of(variant: str, results: Path, backend: str, threads: int, clients: int) -> Execution:
    """What `auto` finds for a method at one K: every K is carried out so, for K alone shall make a difference."""
    settle(threads)
    return contender(clients, variant, results, backend, threads).simulation.execution


def point(
    clients: int,
    variant: str,
    results: Path,
    backend: str,
    threads: int,
    rounds: int | None,
    chosen: Execution,
) -> dict[str, Any]:
    """Seconds per round of the fastest block, for other work only ever slows one down; and bytes resident after the
    rounds: the process's own, and of mapped files."""
    settle(threads)
    one = contender(clients, variant, results, backend, threads, chosen)
    seconds = timing.alone(one, rounds)
    if rounds is None:
        one(max(0, ROUNDS - one.round))
    return {
        "clients": clients,
        "variant": variant,
        "seconds_per_round": float(seconds.min()),
        "rounds": one.round,
        "execution": str(one),
        "resident_bytes": resident("RssAnon"),
        "mapped_bytes": resident("RssFile"),
        "private_floats_per_client": private_floats(one),
    }


def ratio(
    variant: str,
    results: Path,
    backend: str,
    threads: int,
    rounds: int | None,
    compared: tuple[int, int],
    chosen: Execution,
) -> dict[str, Any]:
    """Seconds per round at the larger of two K to those at the smaller, interleaved, carried out in the same way."""
    settle(threads)
    few, many = (contender(count, variant, results, backend, threads, chosen) for count in compared)
    pairs = timing.alternate(many, few, rounds)
    return {
        "ratio": pairs.ratio,
        "spread": pairs.spread,
        "seconds": list(pairs.seconds),
        "executions": [str(many), str(few)],
    }


def private_floats(one: EngineRounds) -> int:
    """Floats that each client keeps for itself."""
    return one.simulation.costs(one.state).kept_private


def resident(kind: str) -> int:
    """Bytes of a kind of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024

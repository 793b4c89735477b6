"""Measure how the cost of a round depends on the number of clients K, at a fixed cohort size M.

The cost is seconds per round and resident memory. The task is an MLP on MNIST with ten training samples per client. For
large K, several clients hold the same samples. This does not change the cost of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from floral.bench import timing
from floral.bench.machine import disturbance
from floral.bench.prepare import prepare
from floral.bench.processes import in_new_process, memory_bytes
from floral.bench.rounds import EngineRounds
from floral.config import catalogue
from floral.config.run import Run
from floral.config.schema.task import Task
from floral.core.clock import read_clock
from floral.core.process import configure_process
from floral.data.federation import Federation
from floral.data.stored import read_data
from floral.engine.simulate import Execution, Simulation
from floral.stages.assemble import build_method, client_data, make_problem, make_settings

CLIENTS = (10, 100, 1_000, 10_000, 100_000)
VARIANTS = ("fedavg", "floral_1", "local_adaptor")
COHORT, SAMPLES_PER_CLIENT = 30, 10
COMPARED_CLIENTS = (1_000, 100_000)
"""The two K whose seconds per round are compared."""
MEMORY_ROUNDS = 30
"""Rounds after which memory is read."""


def scale_run(clients: int, variant: str) -> Run:
    """Return a run with K clients and a cohort of min(30, K). Each client makes one step of ten samples per round."""
    cohort = min(COHORT, clients)
    task = Task(
        name="scale",
        title="MLP 784→200→10, clients share MNIST's samples",
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


def build_federation(run: Run, results: Path) -> Federation:
    """Give each client ten training samples and one test sample of MNIST.

    If there are more clients than samples for them, several clients hold the same samples.
    """
    _, arrays = read_data("mnist", results)
    arrays = {side: np.array(array) for side, array in arrays.items()}
    clients = np.arange(run.task.clients)
    train = (SAMPLES_PER_CLIENT * clients[:, None] + np.arange(SAMPLES_PER_CLIENT)) % len(arrays["train_x"])
    rows = {"train": train, "validation": train[:, :1], "test": clients[:, None] % len(arrays["test_x"])}
    samples = {"train": SAMPLES_PER_CLIENT, "validation": 0, "test": 1}
    return Federation(
        train_x=arrays["train_x"],
        train_y=arrays["train_y"],
        test_x=arrays["test_x"],
        test_y=arrays["test_y"],
        rows=rows,
        counts={split: np.full(len(clients), count) for split, count in samples.items()},
        cluster=clients % run.task.clusters,
        clusters=run.task.clusters,
        classes=10,
        scale=255,
        exact=True,
        partition_digest="",
        make_global_test=lambda: (_ for _ in ()).throw(AssertionError("this benchmark evaluates nothing")),
    )


def engine_rounds(
    clients: int, variant: str, results: Path, backend: str, threads: int, execution_plan: Execution | None = None
) -> EngineRounds:
    """Return a callable that trains with K clients in floral's training engine: a call with n trains n rounds.

    `execution_plan` says how the rounds are computed: backend, chunk, workers and threads. If it is None, the engine
    chooses.
    """
    run = scale_run(clients, variant)
    data = build_federation(run, results)
    cpu = torch.device("cpu")
    method = build_method(run, make_problem(run, data, cpu, torch.float32))
    tensors = client_data(data, method, cpu, torch.float32)
    simulation = Simulation(method, tensors, make_settings(run), Execution("loop", 1))
    return EngineRounds(simulation, simulation.start(), backend, threads, execution_plan)


# --------------------------------------------------------------------------------------------- measurement


def scale(
    *,
    results: Path,
    data_dir: Path | None,
    backend: str,
    threads: int,
    rounds: int | None,
    clients: Iterable[int] = CLIENTS,
    compared: tuple[int, int] = COMPARED_CLIENTS,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every method at every number of clients K, and compare the seconds per round at two K.

    The result has, among others, the keys "points" and "ratios". "points" holds the measurements. "ratios" holds, for
    each method, the seconds per round at K = compared[1], divided by those at K = compared[0]. For one method, all K
    use the same backend, chunk, workers and threads, so that only K differs.

    Raises:
        ConfigError: MNIST's files are missing.
    """
    prepare([], results, data_dir, also=["mnist"])
    points, ratios = [], {}
    for variant in VARIANTS:
        execution_plan = in_new_process(choose_execution, variant, results, backend, threads, compared[0])
        for count in clients:
            points.append(
                in_new_process(measure_point, count, variant, results, backend, threads, rounds, execution_plan)
            )
            log(f"scale: {variant} K = {count}: {1e3 * points[-1]['seconds_per_round']:.2f} ms per round")
        ratios[variant] = in_new_process(
            measure_ratio, variant, results, backend, threads, rounds, compared, execution_plan
        )
        log(f"scale: {variant} K = {compared[1]} / K = {compared[0]}: {ratios[variant]['ratio']:.3f}")
    return {"cohort": COHORT, "clients": list(clients), "compared": list(compared), "points": points, "ratios": ratios}


def choose_execution(variant: str, results: Path, backend: str, threads: int, clients: int) -> Execution:
    """Return the backend, chunk, workers and threads that the engine chooses for a method with K clients."""
    configure_process(threads)
    return engine_rounds(clients, variant, results, backend, threads).simulation.execution


def measure_point(
    clients: int,
    variant: str,
    results: Path,
    backend: str,
    threads: int,
    rounds: int | None,
    execution_plan: Execution,
) -> dict[str, Any]:
    """Measure the seconds per round and the memory of one method with K clients.

    The seconds are those of the fastest block of rounds, because other programs can only slow a block down. The memory
    is read after the timed rounds. It is returned as two numbers: memory of the process itself, and memory-mapped
    files.
    """
    configure_process(threads)
    measured = engine_rounds(clients, variant, results, backend, threads, execution_plan)
    seconds = timing.time_blocks(measured, rounds)
    if rounds is None:
        measured(max(0, MEMORY_ROUNDS - measured.round))
    return {
        "clients": clients,
        "variant": variant,
        "seconds_per_round": float(seconds.min()),
        "rounds": measured.round,
        "execution": str(measured),
        "resident_bytes": memory_bytes("RssAnon"),
        "mapped_bytes": memory_bytes("RssFile"),
        "private_floats_per_client": private_floats(measured),
    }


def measure_ratio(
    variant: str,
    results: Path,
    backend: str,
    threads: int,
    rounds: int | None,
    compared: tuple[int, int],
    execution_plan: Execution,
) -> dict[str, Any]:
    """Measure one method's seconds per round at K = compared[1], divided by those at K = compared[0].

    Both are timed in alternating blocks of rounds. The key "disturbance" says how other work disturbed this, or is
    None.
    """
    configure_process(threads)
    few, many = (engine_rounds(count, variant, results, backend, threads, execution_plan) for count in compared)
    before = read_clock()
    pairs = timing.time_pairs(many, few, rounds)
    return {
        "disturbance": disturbance(read_clock() - before),
        "ratio": pairs.ratio,
        "spread": pairs.spread,
        "seconds": list(pairs.seconds),
        "executions": [str(many), str(few)],
    }


def private_floats(measured: EngineRounds) -> int:
    """Return how many floats each client keeps as private state."""
    return measured.simulation.costs(measured.state).kept_private

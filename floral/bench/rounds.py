"""Train rounds that are to be timed: with floral's training engine, or with the PyTorch baseline.

Both classes are callables: a call with the number n trains the next n rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from floral.bench.baselines.batches import Batches, batches
from floral.bench.baselines.choose import Baseline, choose
from floral.cluster.gpus import resolve_device
from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.core.process import operation_threads
from floral.core.spec import Params, Refused
from floral.core.streams import Stream
from floral.engine import devices, execution
from floral.engine.client_data import Plan, plan
from floral.engine.devices import wait_for
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State
from floral.stages.assemble import assemble, make_problem

BASELINE_ROUNDS = 8
"""Rounds whose batches are prepared for the baseline, which repeats them in turn."""


class EngineRounds:
    """A callable that trains rounds with floral's training engine. It evaluates nothing and writes no files."""

    def __init__(
        self,
        simulation: Simulation,
        state: State,
        backend: str,
        threads: int,
        execution_plan: Execution | None = None,
    ) -> None:
        """Store the simulation and its state, and choose how the rounds are computed: backend, chunk, workers and
        threads.

        `execution_plan` sets these four values. If it is None, the engine chooses them for this `backend` and number of
        `threads`.

        Raises:
            ConfigError: the backend cannot run this method.
        """
        try:
            execution_plan = execution_plan or execution.choose(simulation, state, cast(Any, backend), threads)
        except Refused as reason:
            raise ConfigError(f"--backend {backend} cannot execute this method: {reason}; use --backend auto") from None
        self.simulation = Simulation(simulation.method, simulation.data, simulation.settings, execution_plan)
        self.state, self.round, self.samples = state, 0, 0

    @classmethod
    def of(cls, run: Run, results: Path, device: str, backend: str, threads: int) -> EngineRounds:
        """Return a callable that trains this run with the engine in float32: a call with n trains n rounds.

        The run's data set and partition must exist in the folder `results`.
        """
        place = resolve_device(device)
        devices.settle(place, "fp32")
        simulation, _, state = assemble(run, results, place, torch.float32)
        return cls(simulation, state, backend, threads)

    def __str__(self) -> str:
        used = self.simulation.execution
        return f"{used.backend}, chunk {used.chunk}, {used.workers} × {used.threads} threads"

    def __call__(self, rounds: int) -> None:
        with operation_threads(self.simulation.execution.threads):
            for _ in range(rounds):
                self.round += 1
                _, samples = self.simulation.train(self.state, self.round)
                self.samples += samples
        wait_for(self.simulation.device)


class BaselineRounds:
    """A callable that trains FedAvg rounds with the PyTorch baseline.

    Only the batches of the first BASELINE_ROUNDS rounds are prepared. Later rounds use them again.
    """

    def __init__(self, baseline: Baseline, params: Params, batches: list[Batches]) -> None:
        self.baseline, self.params, self.batches, self.round = baseline, params, batches, 0

    @classmethod
    def of(cls, run: Run, results: Path, threads: int) -> BaselineRounds:
        """Return a callable that trains with the PyTorch baseline on the run's task: a call with n trains n rounds.

        The baseline always trains by FedAvg, even if the run has another method.

        Raises:
            Refused: the task has no baseline.
        """
        fedavg = run.model_copy(update={"variant": catalogue.variant("fedavg")})
        simulation, data, _ = assemble(fedavg, results, torch.device("cpu"), torch.float32)
        prepared = [batches(engine_batches(simulation, round)) for round in range(1, 1 + BASELINE_ROUNDS)]
        model = make_problem(fedavg, data, torch.device("cpu"), torch.float32, results).build_model()
        kind, lr = run.task.model.kind, run.task.lr
        with operation_threads(1):
            baseline = choose(kind, model, simulation.data.train, lr, prepared[0], threads)
        return cls(baseline, model.init(Stream(run.seed, "model")), prepared)

    def __str__(self) -> str:
        return f"PyTorch baseline: {self.baseline}"

    def __call__(self, rounds: int) -> None:
        with operation_threads(1):
            for _ in range(rounds):
                self.params = self.baseline(self.params, self.batches[self.round % len(self.batches)])
                self.round += 1


def engine_batches(simulation: Simulation, round: int) -> Plan:
    """Return the batches of one round for all clients that take part in it, as floral's training engine draws them."""
    settings = simulation.settings
    return plan(
        simulation.data.train,
        simulation.cohort(round),
        round=round,
        seed=settings.seed,
        batch=settings.batch,
        epochs=settings.epochs,
        reshuffle=settings.reshuffle,
        steps=simulation.fixed_steps(simulation.cohort(round)),
    )

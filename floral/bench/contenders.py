"""What is timed: the engine on a run, or the floor on the same batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from floral.bench import floors
from floral.bench.floors import Batches, Floor
from floral.cluster.gpus import resolve_device
from floral.config import catalogue, data_sets
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData
from floral.core.spec import Params, Refused
from floral.core.streams import Stream
from floral.engine import devices, execution
from floral.engine.devices import wait_for
from floral.engine.rows import Plan, plan
from floral.engine.simulate import Execution, Simulation
from floral.engine.state import State
from floral.stages import execute
from floral.stages.fetch import fetch
from floral.stages.partition import partition

FLOOR_ROUNDS = 8
"""Rounds whose batches the floor is given beforehand and goes through again and again."""


def run_of(task: str, variant: str, change: Mapping[str, Any] | None = None) -> Run:
    """The method as described, on all of a client's rows: nothing is tuned, so nothing is held out."""
    rules = catalogue.fidelity("corrected", {"validation": "none"})
    return Run(task=catalogue.task(task, change), variant=catalogue.variant(variant), seed=0, fidelity=rules)


# ------------------------------------------------------------------------------------------------ data


def prepare(runs: Iterable[Run], results: Path, data_dir: Path | None, also: Iterable[str] = ()) -> None:
    """Make the data and the partitions that these runs read, and the data sets `also`, where they are not there yet.

    Raises:
        ConfigError: raw files are missing; all of them are named before anything is made. Nothing is downloaded.
    """
    runs = list(runs)
    read = (run.task.data for run in runs if isinstance(run.task.data, str))
    names = list(dict.fromkeys((*read, *also)))
    require(names, results, data_dir)
    for data in (*names, *(run.task.data for run in runs if isinstance(run.task.data, CustomData))):
        fetch(data, results, data_dir)
    for run in {run.partition.folder: run for run in runs}.values():
        if not (results / run.partition.folder / "partition.parquet").exists():
            partition(run.partition, results, run.task)


def require(names: Iterable[str], results: Path, data_dir: Path | None) -> None:
    """Stop when raw files of a data set are nowhere: a benchmark measures what is there, and downloads nothing.

    Raises:
        ConfigError: with every such file.
    """
    given = data_dir or (Path(os.environ["FLORAL_DATA"]).expanduser() if os.environ.get("FLORAL_DATA") else None)
    missing: dict[str, list[str]] = {}
    for name in names:
        folder = results / "data" / name
        for file in () if (folder / "card.json").exists() else data_sets.data_lock()[name].files:
            here = [given / file.path, given / file.path.removesuffix(".gz")] if given else []
            packaged = any(url.startswith("package:") for url in file.urls)
            if not packaged and not any(path.is_file() for path in (*here, folder / "raw" / Path(file.path).name)):
                missing.setdefault(name, []).append(str(given / file.path if given else file.path))
    if missing:
        lines = "\n".join(f"  {path}: missing ({name})" for name, paths in missing.items() for path in paths)
        where = "" if given else "; no data folder is set"
        public = [name for name in missing if all(file.urls for file in data_sets.data_lock()[name].files)]
        fetched = f"; or download with: floral fetch {' and floral fetch '.join(public)}" if public else ""
        raise ConfigError(
            f"data files are missing{where}\n{lines}\n"
            f"  remedy: name the folder that holds them by FLORAL_DATA or data_dir{fetched}"
        )


# ------------------------------------------------------------------------------------------ contenders


def settle(threads: int) -> None:
    """What a run does before it begins, so that both contenders work under its conditions."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    execute.keep_freed_memory()


class EngineRounds:
    """A simulation that goes on round by round, without evaluation, checkpoints or files."""

    def __init__(
        self,
        simulation: Simulation,
        state: State,
        backend: str,
        threads: int,
        chosen: Execution | None = None,
    ) -> None:
        """With the execution that the backend finds for these threads, or with one that is `chosen` already."""
        try:
            chosen = chosen or execution.choose(simulation, state, cast(Any, backend), threads)
        except Refused as reason:
            raise ConfigError(f"--backend {backend}: {reason}") from None
        self.simulation = Simulation(simulation.method, simulation.data, simulation.settings, chosen)
        self.state, self.round, self.samples = state, 0, 0

    @classmethod
    def of(cls, run: Run, results: Path, device: str, backend: str, threads: int) -> EngineRounds:
        place = resolve_device(device)
        devices.settle(place, "fp32")
        simulation, _, state = execute.assemble(run, results, place, torch.float32)
        return cls(simulation, state, backend, threads)

    def __str__(self) -> str:
        found = self.simulation.execution
        return f"{found.backend}, chunk {found.chunk}, {found.workers} × {found.threads} threads"

    def __call__(self, rounds: int) -> None:
        with operations_on(self.simulation.execution.threads):
            for _ in range(rounds):
                self.round += 1
                _, samples = self.simulation.train(self.state, self.round)
                self.samples += samples
        wait_for(self.simulation.device)


class FloorRounds:
    """The floor of FedAvg on a run's model and data, with the batches of its first rounds."""

    def __init__(self, floor: Floor, params: Params, batches: list[Batches]) -> None:
        self.floor, self.params, self.batches, self.round = floor, params, batches, 0

    @classmethod
    def of(cls, run: Run, results: Path, threads: int) -> FloorRounds:
        """The floor of the run's task, whatever its variant.

        Raises:
            Refused: this task has none.
        """
        fedavg = run.model_copy(update={"variant": catalogue.variant("fedavg")})
        simulation, data, _ = execute.assemble(fedavg, results, torch.device("cpu"), torch.float32)
        batches = [floors.batches(batches_of(simulation, round)) for round in range(1, 1 + FLOOR_ROUNDS)]
        model = execute.make_problem(fedavg, data, torch.device("cpu"), torch.float32).build_model()
        kind, lr = run.task.model.kind, run.task.lr
        with operations_on(1):
            floor = floors.floor(kind, model, simulation.data.train, lr, batches[0], threads)
        return cls(floor, model.init(Stream(run.seed, "model")), batches)

    def __str__(self) -> str:
        return f"floor: {self.floor}"

    def __call__(self, rounds: int) -> None:
        with operations_on(1):
            for _ in range(rounds):
                self.params = self.floor(self.params, self.batches[self.round % len(self.batches)])
                self.round += 1


@contextmanager
def operations_on(threads: int) -> Iterator[None]:
    """Operations of this thread, and of MKL everywhere, use so many threads; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batches_of(simulation: Simulation, round: int) -> Plan:
    """The engine's batches of a round, of the whole cohort at once."""
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

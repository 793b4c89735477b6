"""The contracts of a task: its data, its clients, its model, and which methods can be used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from floral.check.contracts import Broken
from floral.check.outcomes import Check
from floral.config import catalogue, networks
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.core.units import plural
from floral.data import federation
from floral.data.federation import Federation
from floral.stages import check_model
from floral.stages.assemble import assemble, build_method, make_problem
from floral.stages.fetch import fetch
from floral.stages.partition import partition

CPU = torch.device("cpu")
NAMED = 5
"""A remark names at most so many clients or variants."""


def checks(name: str, results: Path, data_dir: Path | None) -> Iterator[Check]:
    """Yield the checks of a task. They store its data and its partition of seed 0 in `results`, as a suite does."""
    runs: list[Run] = []
    data: list[Federation] = []

    def described() -> str:
        task = catalogue.task(name)
        if task.noop:
            raise Broken("`data: nothing`: this task trains no model, so there is nothing to check")
        fidelity = catalogue.fidelity("corrected")
        runs.append(Run(task=task, variant=catalogue.variant("fedavg"), seed=0, fidelity=fidelity))
        return f"{task.title}: {plural(task.clients, 'client')}, {plural(task.rounds, 'round')}"

    def readable() -> None:
        for data in networks.to_fetch(runs[0].task):
            fetch(data, results, data_dir)

    def divided() -> str:
        partition(runs[0].partition, results, runs[0].task)
        data.append(federation.load(runs[0], results))
        counts = data[0].counts
        for split in ("train", "test"):
            if empty := [client for client, count in enumerate(counts[split]) if count == 0]:
                listed = ", ".join(map(str, empty[:NAMED]))
                raise Broken(f"{plural(len(empty), 'client')} without samples in the split {split}: {listed}")
        sizes = [f"{split} {counts[split].min()} to {counts[split].max()}" for split in ("train", "test")]
        validation = "" if counts["validation"].any() else "; no validation samples, so methods cannot be tuned"
        return f"samples of a client: {', '.join(sizes)}{validation}"

    def fits() -> None:
        check_model.check(runs, results)

    def trains() -> str:
        simulation, _, state = assemble(runs[0], results, CPU)
        losses = []
        for round in range(1, min(3, runs[0].task.rounds) + 1):
            losses.append(float(simulation.train(state, round)[0]))
        listed = ", ".join(f"{loss:.4g}" for loss in losses)
        if not all(map(math.isfinite, losses)):
            raise Broken(f"the training loss of FedAvg is not finite: {listed}")
        if losses[-1] > 2 * losses[0]:
            raise Broken(f"the training loss of FedAvg grows: {listed}")
        return f"training loss in the first rounds: {listed}"

    def methods() -> str:
        refused = {}
        index = catalogue.variant_index()
        for variant in index:
            run = runs[0].model_copy(update={"variant": catalogue.variant(variant)})
            try:
                build_method(run, make_problem(run, data[0], CPU, torch.float32, results))
            except ConfigError as reason:
                refused[variant] = str(reason).partition(f"cannot be used for task {name}: ")[2] or str(reason)
        if len(refused) == len(index):
            raise Broken(f"no variant can be used: {next(iter(refused.values()))}")
        lines = [f"{len(index) - len(refused)} of {len(index)} variants"]
        lines += [f"not {variant}: {reason}" for variant, reason in refused.items()]
        return "\n".join(lines)

    yield Check("the YAML file is valid", described, needed=True)
    yield Check("the data can be read", readable, needed=True)
    yield Check(
        "each client has samples for training and for the test", divided, needed=True,
        hint="there are too many clients for the samples, or `partition.alpha` is too small",
    )  # fmt: skip
    yield Check("the model fits the samples", fits, needed=True)
    yield Check("FedAvg trains on it", trains, hint="the learning rate `lr` is too high, or inputs are not normalised")
    yield Check("methods can be used for it", methods)

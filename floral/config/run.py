"""A run and its partition: the values that decide the numbers, and the hashes that name the folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from floral.config import catalogue, data_sets
from floral.config.hashing import hash8
from floral.config.schema.base import Frozen
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.method import Variant
from floral.config.schema.suite import Fidelity
from floral.config.schema.task import Partition, Task, Unseen
from floral.config.schema.tuning import Rates

RESULTS_VERSION = 1
"""Raised by hand when the numerics change, so that new results never mix with old ones."""


class Run(Frozen):
    """One job: a task, a variant and a seed, fully resolved. Equal runs share their folder, whatever the suite."""

    task: Task
    variant: Variant
    seed: int
    fidelity: Fidelity
    own_rates: Rates | None = None
    """From tuning; None: the task's."""

    @property
    def rates(self) -> Rates:
        return self.own_rates or Rates(lr=self.task.lr, router_lr=self.task.router_lr)

    @property
    def partition_seed(self) -> int:
        return 42 if self.fidelity["partition"] == "one" else self.seed

    @property
    def partition(self) -> PartitionJob:
        """The partition that this run reads; every method of a task, seed and fidelity reads the same."""
        task = self.task
        full = {"share": 1.0} if self.fidelity["subset"] == "per_variant" else {}
        whole = {"validation": 0.0} if self.fidelity["validation"] == "none" else {}
        data_seed = self.seed if isinstance(task.data, Synthetic) else None
        return PartitionJob(
            task=task.name, data=data_sets.stored_data(task.data), data_digest=data_sets.data_digest(task.data),
            data_seed=data_seed, clients=task.clients, clusters=task.concepts,
            partition=task.partition.model_copy(update=full | whole), unseen=task.unseen, seed=self.partition_seed,
        )  # fmt: skip

    @property
    def hash8(self) -> str:
        return hash8({"run": self.identity(), "partition": self.partition.hash8, "results_version": RESULTS_VERSION})

    @property
    def folder(self) -> Path:
        """results/train/<task>/<variant>/seed<k>-<hash8>, relative to the results' parent."""
        return Path("train") / self.task.name / self.variant.name / f"seed{self.seed}-{self.hash8}"

    @property
    def siblings(self) -> Path:
        """<task>/<variant>/<hash8> of what decides the numbers but for the seed: equal for all seeds of a variant."""
        shared = {key: value for key, value in self.identity().items() if key != "seed"}
        whole = {"run": shared, "data": data_sets.data_digest(self.task.data), "results_version": RESULTS_VERSION}
        return Path(self.task.name) / self.variant.name / hash8(whole)

    def identity(self) -> dict[str, Any]:
        """The values that decide the numbers: everything but titles, prose and what only the report reads."""
        task = self.task.model_dump(mode="json", exclude={"title"})
        if isinstance(self.task.data, CustomData):
            task["data"] = data_sets.stored_data(self.task.data)  # their content, wherever they lie
        task["model"] = {"kind": self.task.model.kind, **self.task.model.arguments}
        variant = self.variant.model_dump(mode="json", include={"name", "method", "params"})
        known = catalogue.method_file(self.variant.method).parameters
        later = {name: parameter.default for name, parameter in known.items() if parameter.later}
        given = variant["params"].items()
        variant["params"] = {name: value for name, value in given if name not in later or value != later[name]}
        rules = self.fidelity.model_dump(mode="json")
        rules["switches"] = {k: v for k, v in rules["switches"].items() if not catalogue.switches()[k].report_only}
        own = {} if self.own_rates is None else {"own_rates": self.own_rates.model_dump(mode="json")}
        return {"task": task, "variant": variant, "seed": self.seed, "fidelity": rules, **own}


class PartitionJob(Frozen):
    """What decides a partition table: one job of the partition stage."""

    task: str
    data: str | Synthetic
    data_digest: str | None
    data_seed: int | None
    clients: int
    clusters: int
    partition: Partition
    unseen: Unseen | None = Field(default=None, exclude_if=lambda unseen: unseen is None)
    seed: int

    @property
    def hash8(self) -> str:
        joining = {"epochs", "samples"}  # what unseen clients do, not which rows they have
        return hash8(self.model_dump(mode="json", exclude={"task": True, "unseen": joining}))

    @property
    def folder(self) -> Path:
        return Path("partition") / self.task / f"seed{self.seed}-{self.hash8}"

"""Describe a training run and its partition (which samples each client holds).

A hash of the values that determine a run or a partition is part of the name of its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from floral.config import catalogue, code, data_sets, own_model
from floral.config.hashing import hash8
from floral.config.schema.base import Frozen, is_none
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.method import Variant
from floral.config.schema.partition import KINDS, Partition, Unseen
from floral.config.schema.suite import Fidelity
from floral.config.schema.task import Task
from floral.config.schema.tuning import Rates
from floral.core.precision import Precision

RESULTS_VERSION = 1
"""Version of the engine. Increase it when the same runs of all methods give other numbers: all runs get new names."""
PARTITION_VERSION = 1
"""Version of the code that all kinds of partitions share. Increase it when the same partition gives other samples."""
FROZEN_BASE_VERSION = 2
"""Version of `base: frozen`. Increase it when the same runs with a frozen base give other numbers.

From version 2 on, methods with a warm-up have none if the base is frozen.
"""
SYNTHETIC_VERSION = 1
"""Version of the generator of synthetic data. Increase it when the same values give other samples."""


class Run(Frozen):
    """A training run: one variant of a method, trained on one task with one seed.

    If several suites (lists of runs) contain the same run, it is trained once, and all of them use its folder.
    """

    task: Task = Field(description="Task with all its values.")
    variant: Variant = Field(description="Variant with the value of every hyper-parameter.")
    seed: int = Field(description="Seed of the run.")
    fidelity: Fidelity = Field(description="Name of the fidelity, and the value of every fidelity switch.")
    own_rates: Rates | None = Field(
        default=None, description="Tuned learning rates; None if the run uses those of the task."
    )

    precision: Precision = Field(
        default="fp32",
        exclude_if=lambda precision: precision == "fp32",
        description="Precision of matrix products in layers.",
    )

    @property
    def rates(self) -> Rates:
        """The tuned learning rates of the run, or those of the task if the run has no tuned learning rates."""
        return self.own_rates or Rates(lr=self.task.lr, router_lr=self.task.router_lr)

    @property
    def partition_seed(self) -> int:
        """The seed of the partition (the assignment of samples to clients). It is normally the run's seed.

        If `fidelity["partition"]` is `one`, the seed is 42 in every run, as in the published FLoRAL code.
        """
        return 42 if self.fidelity["partition"] == "one" else self.seed

    @property
    def partition(self) -> PartitionJob:
        """The values that determine which samples each client holds in this run.

        They do not depend on the method. So in two runs that differ only in the method, each client holds the same
        samples.
        """
        task = self.task
        full_share = {"share": 1.0} if self.fidelity["subset"] == "per_variant" else {}
        no_validation = {"validation": 0.0} if self.fidelity["validation"] == "none" else {}
        data_seed = self.seed if isinstance(task.data, Synthetic) else None
        return PartitionJob(
            task=task.name, data=data_sets.stored_data(task.data), data_digest=data_sets.data_digest(task.data),
            data_seed=data_seed, clients=task.clients, clusters=task.concepts,
            partition=task.partition.model_copy(update=full_share | no_validation), unseen=task.unseen,
            thresholds=task.thresholds, seed=self.partition_seed,
        )  # fmt: skip

    @cached_property
    def hash8(self) -> str:
        """The hash of all values that determine the results of the run. It is part of the name of the run's folder.

        It is computed once. Snakemake asks for the folder of each run more than ten times.
        """
        return hash8({"run": self.identity(), "partition": self.partition.hash8, "results_version": RESULTS_VERSION})

    @property
    def folder(self) -> Path:
        """The folder of the run, train/<task>/<variant>/seed<k>-<hash8>, as a path inside the results folder."""
        return Path("train") / self.task.name / self.variant.name / f"seed{self.seed}-{self.hash8}"

    @property
    def siblings(self) -> Path:
        """The name of a group of runs: this run and all runs that differ from it only in the seed.

        The name is <task>/<variant>/<hash8>. This hash does not cover the seed, so all runs of the group have the same
        name.
        """
        shared = {key: value for key, value in self.identity().items() if key != "seed"}
        data = data_sets.data_digest(self.task.data)
        content = {"run": shared, "data": data, "results_version": RESULTS_VERSION, **self.partition.versions()}
        return Path(self.task.name) / self.variant.name / hash8(content)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Run:
        """Return a copy with other values. Its hash is computed anew."""
        copy = super().model_copy(update=update, deep=deep)
        vars(copy).pop("hash8", None)
        return copy

    def identity(self) -> dict[str, Any]:
        """Return the values that determine the results of the run. The hash of the run is computed from them.

        Titles, descriptions and settings that change only the report are left out. A hyper-parameter that was added
        after the first results (`later: true` in its YAML file) is left out if it has its default. So the hashes of
        older runs stay valid. For the same reason, the precision `fp32` and versions of 1 are left out.
        """
        task = self.task.model_dump(mode="json", exclude={"title"})
        if isinstance(self.task.data, CustomData):
            task["data"] = data_sets.stored_data(
                self.task.data
            )  # The stored name depends on the content of the data, not on their path.
        task["model"] = own_model.identity(self.task.model)
        if self.task.base == "frozen":
            task["base"] = ["frozen", FROZEN_BASE_VERSION]
        variant = self.variant.model_dump(mode="json", include={"name", "method", "params"})
        parameters = catalogue.method_file(self.variant.method).parameters
        later = {name: parameter.default for name, parameter in parameters.items() if parameter.later}
        variant["method"] = own_model.method_identity(self.variant.method)
        params = variant["params"].items()
        variant["params"] = {name: value for name, value in params if name not in later or value != later[name]}
        rules = self.fidelity.model_dump(mode="json")
        rules["switches"] = {name: value for name, value in rules["switches"].items() if self._is_changed_by(name)}
        optional = {
            "own_rates": self.own_rates and self.own_rates.model_dump(mode="json"),
            "precision": None if self.precision == "fp32" else self.precision,
            "versions": code.versions(self.variant.method, self.task.model.kind) or None,
        }
        values = {key: value for key, value in optional.items() if value is not None}
        return {"task": task, "variant": variant, "seed": self.seed, "fidelity": rules, **values}

    def _is_changed_by(self, switch: str) -> bool:
        """Return whether a fidelity switch can change the results of this run."""
        declared = catalogue.switches()[switch]
        if declared.adaptor is not None:
            return f"floral/adaptors/{declared.adaptor}.py" in code.files(self.variant.method, self.task.model.kind)
        return not declared.report_only


class PartitionJob(Frozen):
    """The values that determine a partition, that is, which samples each client holds.

    The rule `partition` in the Snakefile has one job for each partition. The job writes the partition to its folder.
    """

    task: str = Field(description="Name of the task.")
    data: str | Synthetic = Field(
        description="Name of the folder that stores the data, or the values of synthetic data."
    )
    data_digest: str | None = Field(description="Hash of the content of the data; None for synthetic data.")
    data_seed: int | None = Field(description="Seed that generates synthetic data; None for other data.")
    clients: int = Field(description="Number of clients that take part in training, K.")
    clusters: int = Field(description="Number of concepts (true clusters), C; 1 if nothing distinguishes the clusters.")
    partition: Partition = Field(description="How samples are assigned to clients.")
    unseen: Unseen | None = Field(default=None, exclude_if=is_none, description="Clients that join after training.")
    thresholds: tuple[float, ...] | None = Field(
        default=None, exclude_if=is_none, description="Bounds that turn ratings into classes."
    )
    seed: int = Field(description="Seed of the partition.")

    @property
    def hash8(self) -> str:
        """The hash of all values that determine the partition. It is part of the name of the partition's folder."""
        # These values determine how unseen clients train, not which samples they hold.
        training = {"epochs", "samples"}
        values = self.model_dump(mode="json", exclude={"task": True, "unseen": training})
        return hash8(values | self.versions())

    def versions(self) -> dict[str, Any]:
        """Return the versions of the code that makes this partition. A version of 1 is left out."""
        version_of = {"partition": PARTITION_VERSION, self.partition.kind: KINDS[self.partition.kind].version}
        if isinstance(self.data, Synthetic):
            version_of["synthetic"] = SYNTHETIC_VERSION
        later = {name: version for name, version in version_of.items() if version != 1}
        return {"versions": later} if later else {}

    @property
    def folder(self) -> Path:
        """The folder of the partition, partition/<task>/seed<k>-<hash8>, as a path inside the results folder."""
        return Path("partition") / self.task / f"seed{self.seed}-{self.hash8}"

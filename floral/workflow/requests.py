"""Compute what each job requests from the cluster: memory, time, partition and GPU. Short runs share a job."""

from __future__ import annotations

import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

from floral.cluster import slurm
from floral.stages import estimate
from floral.workflow.rules import Rules


class Requests:
    """The resources that jobs of the Snakemake rules `train` and `tune` request from the cluster.

    These are memory, time, SLURM partition, SLURM account and GPU. `submits` is true if Snakemake submits jobs to a
    cluster.
    """

    def __init__(self, rules: Rules, submits: bool) -> None:
        self.rules, self.submits, self.slurm = rules, submits, rules.settings.slurm

    @property
    def train(self) -> dict[str, Any]:
        """The resources that a job of the Snakemake rule `train` requests.

        Memory and time are functions. Snakemake calls them with the wildcards of each job.
        """
        return self._place | {
            "mem_mb": self.memory,
            "runtime": self.minutes,
            "slurm_extra": shlex.join([f"--signal=USR1@{slurm.WARNING_SECONDS}", *self.slurm.options]),
        }

    @property
    def tune(self) -> dict[str, Any]:
        """The resources that a job of the Snakemake rule `tune` (a search for hyperparameters) requests.

        The time of a search is not known in advance, so the job requests the maximum walltime. If the search is then
        not finished, its next job keeps the finished trials.
        """
        extra = {"slurm_extra": shlex.join(self.slurm.options)} if self.slurm.options else {}
        return self._place | extra | {"mem_mb": self.slurm.memory, "runtime": self.slurm.walltime}

    def check(self) -> None:
        """Read the records of earlier SLURM jobs of all unfinished runs, as `memory` and `minutes` do later.

        Snakemake would add its own words to an error that these two raise.

        Raises:
            ConfigError: the record of a run is damaged.
        """
        for run in self.rules.work.unfinished_runs:
            slurm.end_reasons(self.rules.results / run.folder)

    def memory(self, wildcards: Any) -> int:
        """Return the memory in MB that a SLURM job requests for its run.

        The value is larger if earlier jobs of this run ran out of memory.
        """
        folder, cost = self._run(wildcards)
        return slurm.memory_mb(self.rules.results / folder, self.slurm, cost.memory)

    def minutes(self, wildcards: Any) -> int:
        """Return the walltime in minutes that a SLURM job requests for its run.

        The value is larger if earlier jobs of this run ran out of time.
        """
        folder, cost = self._run(wildcards)
        return slurm.minutes(self.rules.results / folder, self.slurm, cost.seconds)

    def group(self, wildcards: Any) -> str | None:
        """Return "short" for a short run on a cluster. Several short runs share one SLURM job.

        Return None for any other run, which has a job of its own.
        """
        _, run = self.rules.run(wildcards)
        # The value depends only on the configuration, so that it is the same inside and outside a job.
        short = estimate.rough_seconds(run) <= self.slurm.short and not self.slurm.gpu
        return "short" if self.submits and short else None

    @property
    def _place(self) -> dict[str, Any]:
        """The partition, account, quality of service, node features and GPU of a job, as set under `slurm`.

        Values that are not set are left out.
        """
        place: dict[str, Any] = {
            "slurm_partition": self.slurm.partition, "slurm_account": self.slurm.account, "qos": self.slurm.qos,
            "constraint": self.slurm.constraint,
        }  # fmt: skip
        if self.submits and self.slurm.gpu:
            place |= {"gpu": self.slurm.gpu, "gpu_model": self.slurm.gpu_model}
        return {name: value for name, value in place.items() if value}

    def _run(self, wildcards: Any) -> tuple[Path, estimate.Cost]:
        _, run = self.rules.run(wildcards)
        return run.folder, self._costs[run.folder]

    @cached_property
    def _costs(self) -> dict[Path, estimate.Cost]:
        return estimate.expected_costs([run for _, run in self.rules.work.runs.values()], self.rules.results)

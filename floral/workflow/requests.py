"""Cluster resources of each job: memory, time, partition, GPU, and the group of short runs that share a job."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from floral.cluster import slurm
from floral.stages import estimate
from floral.workflow.rules import Rules


class Requests:
    """Resources of `train` and `tune` jobs. SLURM's executor reads all, others at least mem_mb, runtime and gpu.

    `submits`: whether jobs go to a cluster.
    """

    def __init__(self, rules: Rules, submits: bool) -> None:
        self.rules, self.submits, self.slurm = rules, submits, rules.settings.slurm

    @property
    def train(self) -> dict[str, Any]:
        """Resources of the rule `train`."""
        return self._place | {
            "mem_mb": self.memory,
            "runtime": self.minutes,
            "slurm_extra": f"--signal=USR1@{slurm.WARNING_SECONDS}",
        }

    @property
    def tune(self) -> dict[str, Any]:
        """Resources of the rule `tune`.

        A search has no expected time, so it requests the whole walltime. Its finished trials survive a walltime that
        was too short.
        """
        return self._place | {"mem_mb": self.slurm.memory, "runtime": self.slurm.walltime}

    def memory(self, wildcards: Any) -> int:
        """Memory of a run's next job, in MB."""
        folder, cost = self._run(wildcards)
        return slurm.memory_mb(self.rules.results / folder, self.slurm, cost.memory)

    def minutes(self, wildcards: Any) -> int:
        """Walltime of a run's next job, in minutes."""
        folder, cost = self._run(wildcards)
        return slurm.minutes(self.rules.results / folder, self.slurm, cost.seconds)

    def group(self, wildcards: Any) -> str | None:
        """The group of runs that share a job: "short", or None for a separate job.

        It depends on configuration values only, so that Snakemake gets the same answer inside a job as outside.
        """
        _, run = self.rules.run(wildcards)
        short = estimate.rough_seconds(run) <= self.slurm.short and not self.slurm.gpu
        return "short" if self.submits and short else None

    @property
    def _place(self) -> dict[str, Any]:
        """Partition, account and GPU, if the configuration names them."""
        place: dict[str, Any] = {"slurm_partition": self.slurm.partition, "slurm_account": self.slurm.account}
        if self.submits and self.slurm.gpu:
            place |= {"gpu": self.slurm.gpu, "gpu_model": self.slurm.gpu_model}
        return {name: value for name, value in place.items() if value}

    def _run(self, wildcards: Any) -> tuple[Path, estimate.Cost]:
        _, run = self.rules.run(wildcards)
        return run.folder, self._costs[run.folder]

    @cached_property
    def _costs(self) -> dict[Path, estimate.Cost]:
        return estimate.expected_costs([run for _, run in self.rules.work.runs.values()], self.rules.results)

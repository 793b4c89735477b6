"""Compute what each job requests from the cluster: memory, time, partition and GPU. Short runs share a job."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from floral.cluster import slurm
from floral.stages import estimate
from floral.workflow.rules import Rules


class Requests:
    """The resources that `train` and `tune` jobs request from the cluster.

    Snakemake's SLURM executor reads all of them. Other executors read at least mem_mb, runtime and gpu. `submits` says
    whether jobs are submitted to a cluster.
    """

    def __init__(self, rules: Rules, submits: bool) -> None:
        self.rules, self.submits, self.slurm = rules, submits, rules.settings.slurm

    @property
    def train(self) -> dict[str, Any]:
        """The resources of a `train` job. Memory and walltime are functions of the job's wildcards."""
        return self._place | {
            "mem_mb": self.memory,
            "runtime": self.minutes,
            "slurm_extra": f"--signal=USR1@{slurm.WARNING_SECONDS}",
        }

    @property
    def tune(self) -> dict[str, Any]:
        """The resources of a `tune` job.

        The time of a search is not known in advance, so the job requests the maximum walltime. If that is too short,
        the next job keeps the finished trials.
        """
        return self._place | {"mem_mb": self.slurm.memory, "runtime": self.slurm.walltime}

    def memory(self, wildcards: Any) -> int:
        """Return the memory in MB that the next job of a run requests."""
        folder, cost = self._run(wildcards)
        return slurm.memory_mb(self.rules.results / folder, self.slurm, cost.memory)

    def minutes(self, wildcards: Any) -> int:
        """Return the walltime in minutes that the next job of a run requests."""
        folder, cost = self._run(wildcards)
        return slurm.minutes(self.rules.results / folder, self.slurm, cost.seconds)

    def group(self, wildcards: Any) -> str | None:
        """Return "short" for a short run, which shares a job with other short runs.

        Return None for any other run, which has a job of its own.

        The value depends only on the configuration, so that it is the same inside and outside a job.
        """
        _, run = self.rules.run(wildcards)
        short = estimate.rough_seconds(run) <= self.slurm.short and not self.slurm.gpu
        return "short" if self.submits and short else None

    @property
    def _place(self) -> dict[str, Any]:
        """The SLURM partition, the SLURM account and the GPU of a job, if the key `slurm` of config.yaml names them."""
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

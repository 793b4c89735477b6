"""Compute the input files and command-line options of each rule in workflow/rules from the wildcards of a job.

A method `<rule>_input` returns the input files of a rule. A method `<rule>_options` returns the options with which
the rule calls `floral`. They are quoted for the shell, because names of tasks and suites may contain spaces.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from floral.config import networks
from floral.config.data_sets import CUSTOM_PREFIX
from floral.config.reading import ConfigError, suggest
from floral.config.run import Run
from floral.config.searches import Search
from floral.runs import reference
from floral.runs.state import is_finished
from floral.workflow.work import Work

Planned = TypeVar("Planned")
"""What a job makes: a run or a search, with its suite."""


class Rules:
    """The input files and command-line options of all Snakemake rules.

    `work` has the runs, searches and partitions of this Snakemake call. A search finds the hyperparameters of one
    variant of a method on one task.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.settings, self.results = work, work.settings, work.settings.results

    # ------------------------------------------------------------------------------------ what a job makes

    def run(self, wildcards: Any) -> tuple[str, Run]:
        """Return two values: the name of a suite, and the run of this suite that a `train` job trains."""
        folder = f"train/{wildcards.task}/{wildcards.variant}/seed{wildcards.seed}-{wildcards.hash8}"
        return self._planned(self.work.runs, folder)

    def partition(self, wildcards: Any) -> tuple[str, Run]:
        """Return two values: the name of a suite, and a run of this suite that reads the partition of a `partition`
        job.
        """
        folder = f"partition/{wildcards.task}/seed{wildcards.seed}-{wildcards.hash8}"
        return self._planned(self.work.partitions, folder)

    def search(self, wildcards: Any) -> tuple[str, Search]:
        """Return two values: the name of a suite, and the search of this suite that a `tune` job makes."""
        return self._planned(self.work.searches, f"tune/{wildcards.task}/{wildcards.variant}/{wildcards.hash8}")

    def _planned(self, jobs: Mapping[str, Planned], folder: str) -> Planned:
        """Return the entry of `jobs` for a folder inside the results folder.

        Raises:
            ConfigError: the suites of this call do not need the folder.
        """
        if folder not in jobs:
            raise ConfigError(
                f"{self.results}/{folder}: {', '.join(self.settings.suite)} does not need this folder; name a suite "
                "that does: --config suite=NAME"
            )
        return jobs[folder]

    # ------------------------------------------------------------------------------------ inputs

    def all_input(self, wildcards: Any) -> list[str]:
        """Check that the tuned values of all runs exist, and return an empty list: the check needs no input file.

        Raises:
            Untuned: some runs need tuned values that are not in config/tuned.
        """
        del wildcards
        if self.work.untuned is not None:
            raise self.work.untuned
        return []

    def partition_input(self, wildcards: Any) -> list[str]:
        """Return the path of the file card.json, which describes the data set of a partition.

        Return no path for synthetic data.
        """
        data = self.partition(wildcards)[1].partition.data
        return [f"{self.results}/data/{data}/card.json"] if isinstance(data, str) else []

    def tune_input(self, wildcards: Any) -> list[str]:
        """Return the paths of the partitions and networks that a search reads: one partition for each of its seeds."""
        _, search = self.search(wildcards)
        return list(dict.fromkeys(path for trial in search.references() for path in self._inputs(trial)))

    def tuned_input(self, wildcards: Any) -> list[str]:
        """Return the path of the file `done` of each search. A search writes this file when it is finished.

        Raises:
            ConfigError: there is nothing to tune.
        """
        del wildcards
        if not self.work.searches:
            names = ", ".join(self.settings.suite)
            raise ConfigError(
                f"{names}: nothing to tune: no block has `tuned: true`, or config/tuned has all values already; call "
                "snakemake without `tuned` to train the runs"
            )
        return [f"{self.results}/{folder}/done" for folder in self.work.searches]

    def train_input(self, wildcards: Any) -> list[str]:
        """Return the paths of the partition and of the pretrained networks that the run reads.

        Return no path if the task has no data (`data: nothing`), or if the run was taken from the reference results. So
        a new partition starts no jobs of such runs.
        """
        _, run = self.run(wildcards)
        folder = self.results / run.folder
        taken = is_finished(folder) and reference.origin(folder) is not None
        return [] if run.task.noop or taken else self._inputs(run)

    def report_input(self, wildcards: Any) -> list[str]:
        """Return the path of the file `done` of each run of a suite. A run writes this file when it is finished."""
        return [f"{self.results}/{folder}/done" for folder in self.run_folders(wildcards)]

    def _inputs(self, run: Run) -> list[str]:
        table = f"{self.results}/{run.partition.folder}/partition.parquet"
        return [table, *map(str, networks.cards(run.task.model, self.results))]

    # ------------------------------------------------------------------------------------ options

    def fetch_options(self, wildcards: Any) -> str:
        """Return the arguments of `floral fetch`: the name of a data set, and for custom data also a suite.

        The option `--suite` names a suite that uses the custom data, because a task of this suite describes them.
        """
        data = wildcards.data
        if not data.startswith(CUSTOM_PREFIX):
            return shlex.quote(data)
        suite = next(suite for suite, run in self.work.partitions.values() if run.partition.data == data)
        return shlex.join([data, "--suite", suite])

    def partition_options(self, wildcards: Any) -> str:
        """Return the options `--suite`, `--task`, `--seed` and `--expect` for a `partition` job.

        The value of `--expect` is the hash of the partition.
        """
        suite, run = self.partition(wildcards)
        names = ["--suite", suite, "--task", run.task.name]
        return shlex.join([*names, "--seed", str(run.seed), "--expect", wildcards.hash8])

    def tune_options(self, wildcards: Any) -> str:
        """Return the name of a suite, and the options `--tasks` and `--variants` that select one search."""
        suite, search = self.search(wildcards)
        return shlex.join([suite, "--tasks", search.task.name, "--variants", search.variant.name])

    def tuned_options(self, wildcards: Any) -> str:
        """Return the names of the suites with searches, and the options `--tasks` and `--variants`.

        Each option has the values that config.yaml or `--config` selects, and is left out if nothing is selected.
        """
        del wildcards
        suites = dict.fromkeys(suite for suite, _ in self.work.searches.values())
        return f"{shlex.join(suites)} {self._narrowing('tasks', 'variants')}"

    def train_options(self, wildcards: Any) -> str:
        """Return the options that select the run of a `train` job, for example `--suite`, `--task` and `--precision`.

        The value of `--expect` is the hash of the run.
        """
        suite, run = self.run(wildcards)
        names = ["--suite", suite, "--task", run.task.name, "--variant", run.variant.name]
        return shlex.join([*names, "--seed", str(run.seed), "--precision", run.precision, "--expect", run.hash8])

    def report_options(self, wildcards: Any = None) -> str:
        """Return the options `--tasks`, `--variants`, `--seeds`, `--precision` and `--allow-missing` for a report.

        Options that are not set in config.yaml or with `--config` are left out.
        """
        return self.track_options(wildcards) + (" --allow-missing" if self.settings.allow_missing else "")

    def track_options(self, wildcards: Any = None) -> str:
        """Return the options `--tasks`, `--variants`, `--seeds` and `--precision` for tracking with MLflow.

        Options that are not set in config.yaml or with `--config` are left out.
        """
        del wildcards
        return f"{self._narrowing('tasks', 'variants', 'seeds')} --precision {self.settings.precision}".lstrip()

    def run_folders(self, wildcards: Any) -> list[str]:
        """Return the folders of all runs of a suite, as paths inside the results folder."""
        if wildcards.suite not in self.work.suites:
            raise suggest("suite of this call", wildcards.suite, self.work.suites)
        return [str(run.folder) for run in self.work.suites[wildcards.suite]]

    def outdated_runs(self, wildcards: Any) -> list[str]:
        """Return why finished runs of a suite are of another version of the code, one text for each run."""
        folders = [run.folder for run in self.work.suites[wildcards.suite] if run.folder in self.work.outdated]
        return [f"{folder}: {', '.join(self.work.outdated[folder])}" for folder in folders]

    def execution_options(self, wildcards: Any, threads: int, resources: Any) -> str:
        """Return the options that change the speed of a run but not its results, such as `--device` and `--threads`.

        If the job requests a GPU, the run trains on the GPU.
        """
        del wildcards
        device = "cuda" if resources.get("gpu") else self.settings.device
        where = f"--device {device} --runs-per-gpu {self.settings.runs_per_gpu}"
        return f"{where} --backend {self.settings.backend} --threads {threads}"

    def checkpoint_options(self, wildcards: Any) -> str:
        """Return the option `--checkpoint-seconds`, which only `floral train` has."""
        del wildcards
        return f"--checkpoint-seconds {self.settings.checkpoint_seconds:g}"

    def _narrowing(self, *axes: str) -> str:
        values = {axis: self.settings.narrowing[axis] for axis in axes}
        options = [[f"--{axis}", *map(str, names)] for axis, names in values.items() if names is not None]
        return " ".join(map(shlex.join, options))

"""Compute the input files and command-line options of each rule in workflow/rules from the wildcards of a job.

A method `<rule>_input` returns the input files of a rule. A method `<rule>_options` returns the options with which
the rule calls `floral`.
"""

from __future__ import annotations

from typing import Any

from floral.config.data_sets import CUSTOM_PREFIX
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.searches import Search
from floral.workflow.work import Work


class Rules:
    """The input files and command-line options of all rules.

    `work` has the runs, searches and partitions of this Snakemake call. A search tunes one variant on one task.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.settings, self.results = work, work.settings, work.settings.results

    # ------------------------------------------------------------------------------------ what a job makes

    def run(self, wildcards: Any) -> tuple[str, Run]:
        """Return the name of the suite and the run of a `train` job."""
        folder = f"train/{wildcards.task}/{wildcards.variant}/seed{wildcards.seed}-{wildcards.hash8}"
        return self.work.runs[folder]

    def partition(self, wildcards: Any) -> tuple[str, Run]:
        """Return a suite and one of its runs, for a `partition` job. The run reads the partition that the job makes."""
        return self.work.partitions[f"partition/{wildcards.task}/seed{wildcards.seed}-{wildcards.hash8}"]

    def search(self, wildcards: Any) -> tuple[str, Search]:
        """Return the name of the suite and the search of a `tune` job."""
        return self.work.searches[f"tune/{wildcards.task}/{wildcards.variant}/{wildcards.hash8}"]

    # ------------------------------------------------------------------------------------ inputs

    def all_input(self, wildcards: Any) -> list[str]:
        """Return an empty list. Raise Untuned if some runs need tuned values that are not in config/tuned."""
        del wildcards
        if self.work.untuned is not None:
            raise self.work.untuned
        return []

    def partition_input(self, wildcards: Any) -> list[str]:
        """Return the path of the manifest (card.json) of the data set, or no path for synthetic data."""
        data = self.partition(wildcards)[1].partition.data
        return [f"{self.results}/data/{data}/card.json"] if isinstance(data, str) else []

    def tune_input(self, wildcards: Any) -> list[str]:
        """Return the path of the partition table for each seed with which a search trains its candidates."""
        _, search = self.search(wildcards)
        return [self._table(trial) for trial in search.references()]

    def tuned_input(self, wildcards: Any) -> list[str]:
        """Return the file `done` of each search. The file exists when the search is finished.

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
        """Return the path of the partition that the run reads, or no path for `data: nothing`."""
        _, run = self.run(wildcards)
        return [] if run.task.noop else [self._table(run)]

    def report_input(self, wildcards: Any) -> list[str]:
        """Return the file `done` of each run of a suite. The file exists when the run is finished."""
        return [f"{self.results}/{folder}/done" for folder in self.run_folders(wildcards)]

    def _table(self, run: Run) -> str:
        return f"{self.results}/{run.partition.folder}/partition.parquet"

    # ------------------------------------------------------------------------------------ options

    def fetch_options(self, wildcards: Any) -> str:
        """Return the name of the data set. For custom data, add `--suite` with a suite whose task declares them."""
        data = wildcards.data
        if not data.startswith(CUSTOM_PREFIX):
            return data
        suite = next(suite for suite, run in self.work.partitions.values() if run.partition.data == data)
        return f"{data} --suite {suite}"

    def partition_options(self, wildcards: Any) -> str:
        """Return the options that name the suite, task, seed and hash of a partition."""
        suite, run = self.partition(wildcards)
        return f"--suite {suite} --task {run.task.name} --seed {run.seed} --expect {wildcards.hash8}"

    def tune_options(self, wildcards: Any) -> str:
        """Return the options that name the suite, task and variant of a search."""
        suite, search = self.search(wildcards)
        return f"{suite} --tasks {search.task.name} --variants {search.variant.name}"

    def tuned_options(self, wildcards: Any) -> str:
        """Return the suites whose tuned values are written, and the options that select tasks and variants."""
        del wildcards
        suites = dict.fromkeys(suite for suite, _ in self.work.searches.values())
        return f"{' '.join(suites)} {self._narrowing('tasks', 'variants')}"

    def train_options(self, wildcards: Any) -> str:
        """Return the options that name the suite, task, variant, seed and hash of a run."""
        suite, run = self.run(wildcards)
        names = f"--suite {suite} --task {run.task.name} --variant {run.variant.name} --seed {run.seed}"
        return f"{names} --expect {run.hash8}"

    def report_options(self, wildcards: Any = None) -> str:
        """Return the options with the selected tasks, variants and seeds, and with `--allow-missing` if it is set."""
        return self.track_options(wildcards) + (" --allow-missing" if self.settings.allow_missing else "")

    def track_options(self, wildcards: Any = None) -> str:
        """Return the options with the tasks, variants and seeds that config.yaml or `--config` selects."""
        del wildcards
        return self._narrowing("tasks", "variants", "seeds")

    def run_folders(self, wildcards: Any) -> list[str]:
        """Return the folders of all runs of a suite, as paths inside the results folder."""
        return [str(run.folder) for run in self.work.suites[wildcards.suite]]

    def execution_options(self, wildcards: Any, threads: int, resources: Any) -> str:
        """Return the options that change the speed of a run but not its results. A job with a GPU trains on the GPU."""
        del wildcards
        device = "cuda" if resources.get("gpu") else self.settings.device
        where = f"--device {device} --runs-per-gpu {self.settings.runs_per_gpu}"
        return f"{where} --backend {self.settings.backend} --threads {threads}"

    def precision_options(self, wildcards: Any) -> str:
        """Return the options `--precision` and `--checkpoint-seconds`.

        Only `train` has these options: searches always use single precision, and their runs are short.
        """
        del wildcards
        return f"--precision {self.settings.precision} --checkpoint-seconds {self.settings.checkpoint_seconds:g}"

    def _narrowing(self, *axes: str) -> str:
        values = {axis: self.settings.narrowing[axis] for axis in axes}
        return " ".join(f"--{axis} {' '.join(map(str, names))}" for axis, names in values.items() if names is not None)

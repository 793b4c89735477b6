"""Find the runs, searches and partitions of one Snakemake call, and check them before any job starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from floral.config import own_model, plugins
from floral.config.run import Run
from floral.config.searches import Search
from floral.config.settings import Settings, read_settings
from floral.config.tuned import Untuned
from floral.core.passwords import place_of_password
from floral.core.units import run_count
from floral.io.files import date_now
from floral.runs import missing_data, reference
from floral.runs.outdated import outdated
from floral.runs.state import is_finished
from floral.stages import check_data, fetch_missing


@dataclass(frozen=True)
class Work:
    """The runs, searches and partitions of one Snakemake call.

    A search finds the hyperparameters of one variant of a method on one task. With `allow_missing: true`, runs and
    searches whose data are missing are left out.
    """

    settings: Settings
    suites: Mapping[str, list[Run]]
    """Name of a suite → its runs."""
    searches: Mapping[str, tuple[str, Search]]
    """Folder of a search, as a path inside the results folder → name of the suite, and the search."""
    untuned: Untuned | None = None
    """The error about missing tuned values, or None. With an error, `suites` is empty and only tuning can start."""
    missing: tuple[str, ...] = ()
    """One line for each reason why runs were left out."""

    @classmethod
    def read(cls, command_line: Mapping[str, Any], main_process: bool, dry_run: bool) -> Work:
        """Read the configuration, find the runs and searches, and check that their data fit the configuration.

        `command_line` has the keys and values of Snakemake's option `--config`, which win over environment variables.
        `main_process` is false for the Snakemake inside a job. Only the main process copies runs from reports/reference
        and downloads data, because a job may have no network.

        Raises:
            ConfigError: a value of the configuration is wrong, a value does not fit the data, or no run is left.
        """
        settings = read_settings(command_line)
        if main_process and settings.tracking_uri is not None and settings.shown_tracking_uri != settings.tracking_uri:
            remedy = place_of_password(settings.tracking_uri)
            print(f"`tracking_uri` contains a password, which other users may see; {remedy}", file=sys.stderr)
        searches: Mapping[str, tuple[str, Search]] = settings.searches()
        suites: Mapping[str, list[Run]] = {}
        untuned, missing = None, []
        try:
            suites = settings.runs()
        except Untuned as error:  # `Rules.all_input` raises it later. So a call that only tunes can start.
            untuned = error
        if main_process:
            _use_reference(suites, settings, dry_run)
        if settings.allow_missing:
            if main_process:
                tasks = missing_data.tasks_of(suites, searches)
                fetch_missing.try_to_fetch(tasks, settings.results, settings.data_dir)
            suites, searches, missing = missing_data.leave_out_missing(suites, searches, settings.results)
        if main_process:
            check_data.check(missing_data.tasks_of(suites, searches), settings.results)
            _check_code_of_user(suites, settings)
        work = cls(settings, suites, searches, untuned, tuple(missing))
        if main_process and not dry_run:
            work.correct_dates()
        return work

    @cached_property
    def runs(self) -> dict[str, tuple[str, Run]]:
        """Mapping from the folder of a run to two values: the name of the first suite that contains the run, and the
        run.
        """
        return {str(run.folder): (suite, run) for suite in reversed(list(self.suites)) for run in self.suites[suite]}

    @cached_property
    def partitions(self) -> dict[str, tuple[str, Run]]:
        """Mapping from a partition's folder to two values: the name of a suite, and a run that reads the partition."""
        trials = [(suite, trial) for suite, search in self.searches.values() for trial in search.references()]
        return {str(run.partition.folder): (suite, run) for suite, run in [*self.runs.values(), *trials]}

    def correct_dates(self) -> None:
        """Give the present time to results that are dated in the future.

        Snakemake compares the dates of files. It would repeat reports and then fail, because their inputs seem newer.
        """
        results, reports = self.settings.results, self.settings.reports
        outputs = [f"{folder}/done" for folder in (*self.runs, *self.searches)]
        outputs += [f"{folder}/partition.parquet" for folder in self.partitions]
        manifests = [path for pattern in ("data/*/card.json", "track/*", "report/*") for path in results.glob(pattern)]
        pages = [reports / suite / name for suite in self.suites for name in ("index.html", "summary.parquet")]
        if count := date_now([*(results / output for output in outputs), *manifests, *pages]):
            print(f"{count} files in {results} were dated in the future and are now dated today", file=sys.stderr)

    @cached_property
    def outdated(self) -> dict[Path, list[str]]:
        """The runs that other code had finished when this call began, as folder → reasons."""
        return outdated((run for _, run in self.runs.values()), self.settings.results)

    @property
    def unfinished_runs(self) -> list[Run]:
        """The runs that have no result yet."""
        return [run for _, run in self.runs.values() if not is_finished(self.settings.results / run.folder)]

    @property
    def unfinished_suites(self) -> dict[str, list[Run]]:
        """Mapping from the name of a suite to all its runs, for the suites that have an unfinished run."""
        unfinished = {run.folder for run in self.unfinished_runs}
        return {name: runs for name, runs in self.suites.items() if unfinished & {run.folder for run in runs}}


def _check_code_of_user(suites: Mapping[str, list[Run]], settings: Settings) -> None:
    """Build the models and methods that the user wrote, and apply the models to one sample, before any job starts.

    Finished runs are left out, and runs whose data are not fetched yet. The models and methods of floral are left out
    too: they are tested, and importing PyTorch takes seconds.

    Raises:
        ConfigError: a model or method cannot be used; the message names the task's file.
    """
    runs = [
        run
        for runs in suites.values()
        for run in runs
        if own_model.is_of_user(run.task.model) or plugins.is_of_study("methods", run.variant.method)
    ]
    if unfinished := [run for run in runs if not is_finished(settings.results / run.folder)]:
        from floral.stages import check_model

        check_model.check(unfinished, settings.results)


def _use_reference(suites: Mapping[str, list[Run]], settings: Settings, dry_run: bool) -> None:
    """Copy finished runs from the folder `reference` into the results folder, so that they are not trained again.

    With `reuse: false`, remove such copies from the results folder, so that their runs are trained again. A dry run
    changes no file, and only prints the number of these runs.
    """
    folders = [settings.results]
    if settings.reuse:
        verb, count, apply = "taken from", reference.available, reference.restore
        folders.append(settings.reference)
    else:
        verb, count, apply = "trained again and not taken from", reference.restored_runs, reference.remove_restored
    runs = (count if dry_run else apply)(suites, *folders)
    if runs:
        note = " (not in a dry run, which changes no file)" if dry_run else ""
        print(f"{run_count(len(runs))} {verb} {settings.reference}{note}", file=sys.stderr)

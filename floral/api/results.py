"""Read the results of runs as polars frames."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from floral.api.arguments import folder_of
from floral.config import catalogue
from floral.config.reading import ConfigError, suggest
from floral.config.refresh import refresh
from floral.config.run import Run
from floral.config.settings import read_settings
from floral.config.suites import suite_runs
from floral.core.units import run_count
from floral.report.collect import UNREADABLE, finished_columns, json_file, summary_frame, unreadable
from floral.report.compared import change_columns
from floral.runs.layout import identifying_columns
from floral.runs.outdated import stored_run
from floral.runs.state import failure, is_finished

if TYPE_CHECKING:
    from floral.api.trained import TrainedModel

PLACE = "floral.load"
KEYS = ("task", "variant", "seed", "hash8")
"""First columns of all frames. `hash8` identifies a run."""
ONLY_OF_SUITES = ("suite", "configuration", "method_id", "tuned")
"""Columns of summary.parquet that say how the report of a suite groups its runs."""


class Results:
    """The results of one or more runs, as polars frames. `frame.to_pandas()` gives the same in pandas.

    Each frame begins with the columns task, variant, seed and hash8. The hash identifies a run, also where two runs
    have the same task, variant and seed but other values. `a + b` has the runs of both.
    """

    def __init__(self, runs: Iterable[tuple[Path, Run]], folder: Path) -> None:
        """Describe the runs whose folders are given. `folder` is the results folder, which has their data."""
        self._runs = {run.hash8 if not is_finished(path) else _hash8(path): (path, run) for path, run in runs}
        self._folder = folder

    @cached_property
    def summary(self) -> pl.DataFrame:
        """One row per run: what it is, its status, scores after the last round, and costs.

        `status` is done, diverged, failed or missing (not trained yet). Accuracies are shares from 0 to 1. Losses are
        means over samples. `task_changes`, `method_changes` and `switches` (JSON) say what differs from the files in
        config/. The page "Files of a run" describes all columns.

        Raises:
            ConfigError: a file of a finished run is missing or damaged.
        """
        changes = change_columns()
        rows = []
        for path, run in self._runs.values():
            row = {**identifying_columns(run), **changes(run)}
            if not is_finished(path):
                rows.append({**row, "status": "failed" if failure(path) else "missing"})
                continue
            try:
                result = json_file(path / "summary.json")
                row["hash8"] = result["hash8"]
                rows.append({**row, **finished_columns(path, result, json_file(path / "costs.json"))})
            except UNREADABLE as error:
                raise unreadable(path, error) from None
        frame = summary_frame(rows).drop(ONLY_OF_SUITES)
        return frame.select(*KEYS, pl.exclude(KEYS))

    def curves(self) -> pl.DataFrame:
        """Return all metrics of all evaluated rounds, one row per run, round, split and metric.

        Columns after the keys: round; split (train, validation, test, population, route, official); metric (loss,
        accuracy, ari, …); value; and up to this round: bytes sent by all clients, client_samples (samples trained on)
        and client_passes (forward-backward passes).

        Raises:
            ConfigError: a file of a finished run is missing or damaged.
        """
        return self._frame("metrics.parquet")

    def clients(self) -> pl.DataFrame:
        """Return the scores of each client after the last round, one row per run and client.

        Columns after the keys: client; cluster (its true cluster); train_rows; test_rows (samples of the score);
        correct; accuracy; loss; own_rows and own_correct (its own test samples); route (weights of the learned
        clusters, null without routes); name (in the data, or null).

        Raises:
            ConfigError: a file of a finished run is missing or damaged.
        """
        return self._frame("clients.parquet")

    def routes(self) -> pl.DataFrame:
        """Return the clients' routes, one row per run, evaluated round and client.

        Columns after the keys: round; client; cluster (its true cluster); route (list of weights of the learned
        clusters). Runs of methods without clusters have no rows.

        Raises:
            ConfigError: a file of a finished run is damaged.
        """
        return self._frame("routes.parquet", optional=True)

    def model(self, run: str | None = None) -> TrainedModel:
        """Return the trained model of a run, whose `predict` computes a client's outputs.

        `run` is the hash8 of the run, as in the frames. It may be left out if there is only one run.

        Raises:
            ConfigError: there is no such run, it is not finished, its data are missing, or its code or files have
                changed since it was trained.
        """
        if run is None and len(self._runs) == 1:
            (run,) = self._runs
        if not isinstance(run, str) or run not in self._runs:
            listed = ", ".join([*self._runs][:10])
            raise ConfigError(f"model: run: {run!r} is no run here; give the hash8 of a run, such as {listed}")
        path, described = self._runs[run]
        if not is_finished(path):
            raise ConfigError(f"model: run: {run} is not finished; train it first")
        from floral.api.trained import TrainedModel

        refresh()
        return TrainedModel(described, path, self._folder)

    def __add__(self, more: Results) -> Results:
        if not isinstance(more, Results):
            return NotImplemented
        if self._folder.absolute() != more._folder.absolute():
            raise ConfigError(
                f"results of two folders cannot be added ({self._folder} and {more._folder}); concatenate their "
                "frames with polars.concat"
            )
        return Results([*self._runs.values(), *more._runs.values()], self._folder)

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        done = sum(is_finished(path) for path, _ in self._runs.values())
        return f"<Results of {run_count(len(self))} in {self._folder}, {done} finished>"

    def _repr_html_(self) -> str:
        table = self.summary.select(*KEYS, "status", "round", "test_accuracy", "test_loss")
        return f"<p>{run_count(len(self))} in {self._folder}</p>{table._repr_html_()}"

    def _frame(self, file: str, optional: bool = False) -> pl.DataFrame:
        frames = []
        for hash8, (path, run) in self._runs.items():
            if not is_finished(path) or (optional and not (path / file).exists()):
                continue
            keys = dict(zip(KEYS, (run.task.name, run.variant.name, run.seed, hash8), strict=True))
            try:
                frame = pl.read_parquet(path / file)
            except UNREADABLE as error:
                raise unreadable(path, error) from None
            frames.append(frame.select(*(pl.lit(value).alias(name) for name, value in keys.items()), pl.all()))
        return pl.concat(frames, how="diagonal") if frames else pl.DataFrame()


def _hash8(folder: Path) -> str:
    """Return the hash of a finished run, which its folder's name ends with."""
    return folder.name.rpartition("-")[2]


def load(
    results: str | Path | None = None,
    suite: str | None = None,
    *,
    tasks: str | Sequence[str] | None = None,
    variants: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
) -> Results:
    """Return the results in a folder: the runs of a suite, or all finished runs.

    Args:
        results: the results folder; by default that of the study, or `results` in the working directory.
        suite: a suite. Its runs that are not finished have a row in `summary`, too. Without it, all finished runs in
            the folder are returned, also those of `floral.run`.
        tasks: names of tasks to which the runs are narrowed.
        variants: names of variants to which the runs are narrowed.
        seeds: seeds to which the runs are narrowed.

    Raises:
        ConfigError: the folder does not exist, a name is unknown, or no run is finished.
    """
    refresh()
    settings = read_settings(outside=True)
    folder = folder_of(results, settings.results, PLACE)
    if not (folder / "train").is_dir():
        raise ConfigError(
            f"{PLACE}: results: {folder.absolute()} has no runs; give the folder `results` of a study, or train "
            "runs first"
        )
    narrowing = (_listed(tasks), _listed(variants), _listed(seeds))
    if suite is not None:
        catalogue.suite(suite, f"{PLACE}: suite")
        runs = suite_runs(suite, *narrowing, settings.precision)
        pairs = [(folder / run.folder, run) for run in runs]
    else:
        pairs = _narrowed(_stored(folder), narrowing)
    if not any(is_finished(path) for path, _ in pairs):
        what = f"suite {suite!r}" if suite else "the selected tasks, variants and seeds"
        train = f"snakemake --profile local --config suite={suite}" if suite else "floral.run"
        raise ConfigError(f"{PLACE}: {folder.absolute()} has no finished run of {what}; train it with {train}")
    return Results(pairs, folder)


def _narrowed(pairs: list[tuple[Path, Run]], narrowing: Sequence[list[Any] | None]) -> list[tuple[Path, Run]]:
    """Return the runs with these tasks, variants and seeds.

    Raises:
        ConfigError: no run has one of these tasks, variants or seeds.
    """
    for axis, values in zip(("task", "variant", "seed"), narrowing, strict=True):
        value_of = {path: _axes(run)[axis] for path, run in pairs}
        for value in values or ():
            if value not in value_of.values():
                present = map(str, {*value_of.values()})
                raise suggest(axis, str(value), present, f"{PLACE}: {axis}s: no finished run has it")
        pairs = [(path, run) for path, run in pairs if values is None or value_of[path] in values]
    return pairs


def _axes(run: Run) -> dict[str, Any]:
    return {"task": run.task.name, "variant": run.variant.name, "seed": run.seed}


def _listed(values: Any) -> list[Any] | None:
    return None if values is None else [values] if isinstance(values, str | int) else list(values)


def _stored(results: Path) -> list[tuple[Path, Run]]:
    """Return all finished runs of a results folder. Warn about those that this version cannot read."""
    folders = sorted(path.parent for path in (results / "train").glob("*/*/seed*/summary.json"))
    stored = [(folder, stored_run(folder)) for folder in folders]
    if unknown := [str(folder) for folder, run in stored if run is None]:
        warnings.warn(
            f"{run_count(len(unknown))} of another version, or of methods and models that are not here, left out: "
            f"{', '.join(unknown[:3])}",
            stacklevel=3,
        )
    return [(folder, run) for folder, run in stored if run is not None]

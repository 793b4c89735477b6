"""Prepare what a benchmark measures: the run, its data sets and its partition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from floral.config import catalogue, data_sets, networks
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData
from floral.data import sources
from floral.stages.fetch import data_folders, fetch
from floral.stages.partition import partition


def benchmark_run(
    task: str, variant: str, change: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
) -> Run:
    """Return the run of a task and variant that a benchmark measures, with seed 0.

    Nothing is tuned here, so no training sample is held back for validation. If the published code of a method differs
    from its paper, the run follows the paper. `change` replaces values of the task, and `params` replaces
    hyper-parameters of the variant.
    """
    rules = catalogue.fidelity("corrected", {"validation": "none"})
    return Run(task=catalogue.task(task, change), variant=catalogue.variant(variant, params), seed=0, fidelity=rules)


def prepare(runs: Iterable[Run], results: Path, data_dir: Path | None, also: Iterable[str] = ()) -> None:
    """Read the data sets of these runs and create their partitions, unless they exist already.

    `also` names further data sets to read. Nothing is downloaded.

    Raises:
        ConfigError: raw files are missing. The message names all of them.
    """
    runs = list(runs)
    needed = [data for run in runs for data in networks.to_fetch(run.task)]
    names = list(dict.fromkeys((*(data for data in needed if isinstance(data, str)), *also)))
    require(names, results, data_dir)
    for data in (*names, *(data for data in needed if isinstance(data, CustomData))):
        fetch(data, results, data_dir)
    for run in {run.partition.folder: run for run in runs}.values():
        if not (results / run.partition.folder / "partition.parquet").exists():
            partition(run.partition, results, run.task)


def require(names: Iterable[str], results: Path, data_dir: Path | None) -> None:
    """Check that the raw files of these data sets exist, because benchmarks download nothing.

    Raises:
        ConfigError: files are missing. The message names all of them.
    """
    if missing := missing_files(names, results, data_dir):
        lines = "\n".join(f"  {path}: missing (data set {name})" for name, paths in missing.items() for path in paths)
        where = "" if data_folders(data_dir) else "; no data folder is set"
        public = [name for name in missing if all(file.urls for file in data_sets.data_lock()[name].files)]
        download = f", or download them with: floral fetch {' and floral fetch '.join(public)}" if public else ""
        raise ConfigError(
            f"data files are missing, and benchmarks download nothing{where}\n{lines}\n"
            f"  remedy: set `FLORAL_DATA` or `data_dir` to the folder that holds them{download}"
        )


def missing_files(names: Iterable[str], results: Path, data_dir: Path | None) -> dict[str, list[str]]:
    """Return the raw files of these data sets that do not exist: name of the data set → where each file is expected."""
    places = data_folders(data_dir)
    missing: dict[str, list[str]] = {}
    for name in names:
        folder = results / "data" / name
        for file in () if (folder / "card.json").exists() else data_sets.data_lock()[name].files:
            if not sources.is_there(file, folder / "raw", places):
                missing.setdefault(name, []).append(
                    " and ".join(str(place / file.path) for place in places) or file.path
                )
    return missing

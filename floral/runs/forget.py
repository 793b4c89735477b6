"""Remove runs from the results folder, so that they are trained again."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from floral.config import catalogue
from floral.config.reading import ConfigError, suggest
from floral.io import locks
from floral.io.locks import held
from floral.runs.outdated import outdated, stored_run, why_not_continued
from floral.runs.state import IN_USE, LOCK, running

FINISHED_MARKS = ("done", "summary.json")
"""Removed before all other files of a run. So a partly removed run never counts as finished."""


@contextmanager
def without_snakemake(results: Path) -> Iterator[None]:
    """During the `with` block, Snakemake waits at its start with this results folder.

    Raises:
        ConfigError: Snakemake works with these results already.
    """
    if not results.is_dir():
        yield
        return
    with locks.exclusively(results / IN_USE) as is_alone:
        if not is_alone:
            raise ConfigError(
                f"{results}: Snakemake works with these results; wait until it ends, or stop it, and repeat the command"
            )
        yield


def folders_to_forget(names: Collection[str], results: Path, only_outdated: bool) -> list[Path]:
    """Return the folders of runs and searches of these variants or tasks, as paths inside the results folder.

    Without names, all variants are meant. With `only_outdated`, only runs of other code are returned: finished runs
    that may have other numbers now, and interrupted runs that cannot continue.

    Raises:
        ConfigError: a name is neither a variant nor a task, or a process is working on one of the runs.
    """
    runs = sorted((results / "train").glob("*/*/seed*"))
    searches = [] if only_outdated else sorted(path for path in (results / "tune").glob("*/*/*") if path.is_dir())
    variants_and_tasks = {name for folder in (*runs, *searches) for name in (folder.parts[-2], folder.parts[-3])}
    variants_and_tasks |= {*catalogue.variant_index(), *catalogue.names("tasks")}
    for name in names:
        if name not in variants_and_tasks:
            raise suggest("variant or task", name, variants_and_tasks, f"{results}")
    names_to_forget = set(names) or variants_and_tasks
    folders = [path for path in (*runs, *searches) if {path.parts[-2], path.parts[-3]} & names_to_forget]
    if only_outdated:
        folders = [folder for folder in folders if _is_outdated(folder, results)]
    if working := [folder for folder in folders if running(folder)]:
        raise ConfigError(f"{working[0]}: a process is working on this run; stop it, and repeat the command")
    return [folder.relative_to(results) for folder in folders]


def _is_outdated(folder: Path, results: Path) -> bool:
    """Return whether a finished run may have other numbers than the code here would give, or cannot be continued.

    A run of an earlier version, which has another name than today's run with the same values, is not outdated. Neither
    is a run whose values this version does not know.

    Raises:
        ConfigError: run.yaml is damaged.
    """
    run = stored_run(folder)
    if run is None or results / run.folder != folder:
        return False
    return bool(outdated([run], results) or why_not_continued(run, folder))


def forget(folders: Iterable[Path], results: Path) -> None:
    """Remove these folders of runs and searches from the results folder."""
    for folder in (results / path for path in folders):
        with held(folder / LOCK, "removing this run"):
            for name in FINISHED_MARKS:
                (folder / name).unlink(missing_ok=True)
            for path in sorted(folder.iterdir()):
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.rmtree(folder)
        _remove_if_unused(folder.parent)


def _remove_if_unused(folder: Path) -> None:
    """Remove the folder of a variant if it has no run or search any more. It may still have files of measured times."""
    if not any(path.is_dir() for path in folder.iterdir()):
        shutil.rmtree(folder)

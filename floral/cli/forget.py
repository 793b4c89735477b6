"""Remove runs from the results, from MLflow and from the reports, so that they are trained again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.settings import Settings
from floral.config.suites import suite_runs
from floral.core.precision import PRECISIONS
from floral.core.units import run_count
from floral.runs import forget as on_disk
from floral.runs import reference
from floral.runs.state import is_finished
from floral.tracking.mlflow_store import default_uri


def forget(names: Collection[str], settings: Settings, only_outdated: bool) -> None:
    """Remove the runs and searches of these variants or tasks, and print what is removed.

    Without names, all variants are meant. With `only_outdated`, only runs made by other code are removed.

    Raises:
        ConfigError: a name is unknown, Snakemake or another process works with these runs, or MLflow does not answer.
            Then no file is removed.
    """
    results = settings.results
    with on_disk.without_snakemake(results):
        folders = on_disk.folders_to_forget(names, results, only_outdated)
        if not folders:
            print(f"{results}: nothing to remove: it has no such run or search")
            return
        runs = [folder for folder in folders if folder.parts[0] == "train"]
        uri = settings.tracking_uri or default_uri(results)
        tracked = _remove_from_mlflow(runs, results, uri)
        on_disk.forget(folders, results)
    searches = f" and {len(folders) - len(runs)} searches" if len(runs) < len(folders) else ""
    print(f"{run_count(len(runs))}{searches} removed from {results}")
    for suite in sorted({*tracked, *_reports_with(runs, settings)}):
        _renew(suite, settings, suite in tracked)
    if committed := reference.archives_with(runs, settings.reference):
        names_of_archives = ", ".join(map(str, committed))
        print(f"{names_of_archives}: has runs of the same names; with `--config reuse=false` they are trained here")
    if len(runs) < len(folders):
        print("the values that these searches chose stay in config/tuned until they are chosen again")


def _remove_from_mlflow(runs: list[Path], results: Path, uri: str) -> list[str]:
    """Remove these runs and their means from MLflow, and return the suites that had them."""
    suites = []
    for path in sorted((results / "track").glob("*.json")):
        tracked = json.loads(path.read_text(encoding="utf-8"))
        gone = [folder for folder in runs if str(folder) in tracked["runs"]]
        if gone:
            from floral.tracking.track import remove

            remove(path.stem, gone, results, uri)
            suites.append(path.stem)
    return suites


def _reports_with(runs: list[Path], settings: Settings) -> list[str]:
    """Return the suites whose report shows one of these runs."""
    import polars as pl

    gone = {folder.name.rpartition("-")[2] for folder in runs}
    return [
        path.parent.name
        for path in sorted(settings.reports.glob("*/summary.parquet"))
        if not gone.isdisjoint(pl.read_parquet(path, columns=["hash8"])["hash8"])
    ]


def _renew(suite: str, settings: Settings, is_tracked: bool) -> None:
    """Build the report and the means in MLflow again from the runs that are left, for a suite that lost some.

    `is_tracked` says whether MLflow had some of these runs.
    """
    page, complete = settings.reports / suite, settings.results / "report" / f"{suite}.complete"
    complete.unlink(missing_ok=True)
    try:
        runs = [run for precision in PRECISIONS for run in suite_runs(suite, precision=precision)]
    except ConfigError as error:  # the suite was renamed, or its tuned values are missing now
        print(f"{page} still shows them, because the suite cannot be read: {error}")
        return
    if is_tracked:
        from floral.cli.labels import labels_of
        from floral.tracking.track import track

        track(suite, runs, settings.results, settings.tracking_uri, labels=labels_of(runs))
    runs_in_report = _runs_in_report(page / "summary.parquet", runs)
    if any(is_finished(settings.results / run.folder) for run in runs_in_report):
        from floral.report.build import report

        report(suite, runs_in_report, settings.results, settings.reports, partial=True)
        print(f"{page}: built again from the runs that are left")
    elif page.exists():
        from floral.report.suites_page import write_suites_page

        shutil.rmtree(page)
        write_suites_page(settings.results, settings.reports)
        print(f"{page} removed: none of its runs is left")


def _runs_in_report(summary: Path, runs: list[Run]) -> list[Run]:
    """Return those of the runs that the report with this summary.parquet shows."""
    import polars as pl

    if not summary.exists():
        return []
    hashes = set(pl.read_parquet(summary, columns=["hash8"])["hash8"])
    return [run for run in runs if run.hash8 in hashes]

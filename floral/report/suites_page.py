"""Write index.html in the folder of the reports: a page that lists all suites that were reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from floral.config.reading import ConfigError
from floral.io.files import atomic
from floral.io.locks import held
from floral.report import sentences
from floral.report.templates import embedded, environment

LEADERBOARD = "leaderboard.html"
STATES = ("done", "diverged", "failed", "missing")
COMMITTED = "reference"
"""The folder of committed reports, inside the project's folder of reports."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A suite that was reported: where its page is, and what it has."""

    address: str
    name: str
    title: str
    about: str
    tasks: int
    methods: int
    seeds: int
    runs: Mapping[str, int]
    """Status → number of runs."""
    last: str
    """When the last run ended, such as `2026-01-31 12:00`; empty if no run is finished."""
    committed: bool

    @property
    def state(self) -> str:
        return sentences.states(self.runs)


def write_suites_page(results: Path, reports: Path) -> None:
    """Write <reports>/index.html, which lists the reports in this folder, and in its subfolder `reference`.

    Equal reports give the same page. Only one process at a time writes it, so that no report is missing in it.
    """
    with held(results / "report" / ".index.lock", "listing the reports"):
        uncommitted = [_reported(path, reports) for path in sorted(reports.glob("*/summary.parquet"))]
        committed = [_reported(path, reports) for path in sorted(reports.glob(f"{COMMITTED}/*/summary.parquet"))]
        page = (
            environment()
            .get_template("index.html.j2")
            .render(
                suites=[suite for suite in uncommitted + committed if suite is not None],
                leaderboard=LEADERBOARD if (reports / LEADERBOARD).exists() else "",
                **embedded(),
            )
        )
        atomic(reports / "index.html", page.encode())


def _reported(summary: Path, reports: Path) -> Reported | None:
    """Return what a summary.parquet says of its suite. Return None if its folder has no page."""
    folder = summary.parent
    if folder.name.startswith(".") or not (folder / "index.html").exists():
        return None
    columns = ["task", "variant", "seed", "status", "finished_at"]
    rows = pl.read_parquet(summary, columns=columns)
    about = {"name": folder.name, "title": folder.name, "about": ""}
    try:
        about = sentences.suite(folder.name)
    except ConfigError:  # the suite was renamed or removed after its report
        about["about"] = "config/suites has no readable suite of this name now."
    last = rows["finished_at"].drop_nulls().max()
    return Reported(
        **about,
        address=f"{folder.relative_to(reports).as_posix()}/index.html",
        tasks=rows["task"].n_unique(), methods=rows["variant"].n_unique(), seeds=rows["seed"].n_unique(),
        runs={status: dict(rows["status"].value_counts().iter_rows()).get(status, 0) for status in STATES},
        last=str(last or "")[:16].replace("T", " "),
        committed=folder.parent != reports,
    )  # fmt: skip

"""Rank × number of adaptors: which runs make a table, and what stands where."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
from printed import read_page
from run_folders import CLIENTS, CLUSTERS, write_run

from floral.config import catalogue
from floral.config.run import Run
from floral.report.build import report


def sized(variant: str, multiplier: int, seed: int, **task: int) -> Run:
    values = {"clients": CLIENTS, "clusters": CLUSTERS, "rounds": 4, "eval_every": 2, **task}
    changed = catalogue.variant(variant, {"multiplier": multiplier})
    return Run(
        task=catalogue.task("digits_rotate", values),
        variant=changed,
        seed=seed,
        fidelity=catalogue.fidelity("corrected"),
    )


def built(tmp_path: Path, runs: list[Run], unfinished: int = 0) -> tuple[str, Path]:
    for run in runs[: len(runs) - unfinished]:
        write_run(tmp_path / "results", run)
    page = report("quickstart", runs, tmp_path / "results", tmp_path / "reports", partial=True)
    return read_page(page), page.parent


def test_assumed_clusters_and_multipliers_make_one_axis(tmp_path: Path) -> None:
    runs = [sized(name, m, seed) for name in ("floral_1", "floral_10") for m in (1, 2) for seed in (0, 1)]
    runs += [sized("floral_1", 1, seed, assumed_clusters=1) for seed in (0, 1)]
    text, folder = built(tmp_path, runs)
    frame = pl.read_csv(folder / "figures/rank_clusters_1_digits_rotate.csv")
    assert sorted(frame.select("rank", "adaptors").iter_rows()) == [
        ("rank 1 %", 1), ("rank 1 %", 2), ("rank 1 %", 4), ("rank 10 %", 2), ("rank 10 %", 4),
    ]  # fmt: skip
    assert frame["mean"].round(6).to_list() == [85.5] * 3 + [75.5] * 2
    (section,) = re.findall(r'<section id="rank_clusters">.*?</section>', text, re.DOTALL)
    assert [cell for cell in re.findall(r'class="cell *"[^>]*>([^<]*)<', section)][2:4] == ["85.5 ± 6.4", "–"]
    latex = (folder / "tables/rank_clusters_1_digits_rotate.tex").read_text(encoding="utf-8")
    assert latex.count(r"85.5 $\pm$ 6.4") == 3 and "rank 10" in latex
    assert {path.suffix for path in (folder / "figures").glob("rank_clusters_*")} == {".csv", ".svg", ".pdf"}


def test_one_rank_or_one_number_of_adaptors_is_no_table(tmp_path: Path) -> None:
    for at, runs in enumerate((
        [sized("floral_1", 1, 0), sized("floral_1", 2, 0)],
        [sized("floral_1", 1, 0), sized("floral_10", 1, 0)],
    )):  # fmt: skip
        assert 'id="rank_clusters"' not in built(tmp_path / str(at), runs)[0]


def test_sizes_without_a_run_are_no_cells(tmp_path: Path) -> None:
    runs = [sized("floral_1", 1, 0), sized("floral_1", 2, 0), sized("floral_10", 1, 0), sized("floral_10", 2, 0)]
    _, folder = built(tmp_path, runs, unfinished=1)
    assert pl.read_csv(folder / "figures/rank_clusters_1_digits_rotate.csv").height == 3

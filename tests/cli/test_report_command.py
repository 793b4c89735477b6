"""`floral report --reference`: the page, figures and tables of committed runs, built from their archive."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from projects import ROOT

from floral.cli import commands, main

SUITE = "paper_cifar10_reduced"
"""The smallest reference: 3 of 54 runs. Two of them have new names, because `conv_preconditioner` changed."""


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FLORAL_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("FLORAL_REPORTS", raising=False)


def test_a_reference_is_reported_from_its_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["report", "--reference", SUITE, "--reports", str(tmp_path)]) == 0
    folder = tmp_path / SUITE
    assert capsys.readouterr().out == f"report of the reference results: {folder}/index.html\n"
    committed = pl.read_parquet(ROOT / "reports/reference" / SUITE / "summary.parquet")
    rebuilt = pl.read_parquet(folder / "summary.parquet")
    done, same_runs = (table.filter(pl.col("status") == "done").drop("reference") for table in (rebuilt, committed))
    assert done.height and done.equals(same_runs)
    commits = set(rebuilt["reference"].drop_nulls())
    assert commits and all(commit.startswith(f"{SUITE}, commit ") for commit in commits)
    for kind in ("csv", "svg", "pdf"):
        assert list((folder / "figures").glob(f"tradeoff_*.{kind}"))
    assert (folder / "tables/main.tex").stat().st_size
    assert f"{54 - done.height} of 54 runs have no result yet" in (folder / "index.html").read_text(encoding="utf-8")
    assert not (tmp_path / "results").exists()  # the archive is unpacked elsewhere


@pytest.mark.parametrize(("options", "is_complete"), [([], False), (["--reports", "elsewhere"], True)])
def test_snakemake_replaces_the_page_of_a_reference(
    options: list[str], is_complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page in the folder that Snakemake writes is not taken for the page of the results."""
    pages: list[Path] = []
    monkeypatch.setattr(commands, "_report_reference", lambda suite, runs, reports, *_: pages.append(reports))
    complete = tmp_path / "results/report" / f"{SUITE}.complete"
    complete.parent.mkdir(parents=True)
    complete.touch()
    assert main.main(["report", "--reference", SUITE, *options]) == 0
    assert pages == [Path(*options[1:] or ["reports"])] and complete.exists() == is_complete


def test_an_unknown_reference_and_other_runs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["report", "--reference", "quickstart"]) == main.MISTAKE
    assert "reports/reference: unknown reference 'quickstart'" in capsys.readouterr().err
    assert main.main(["report", "--reference", SUITE, "--variants", "ensemble"]) == main.MISTAKE
    assert f"reports/reference/{SUITE} has none of the selected runs" in capsys.readouterr().err

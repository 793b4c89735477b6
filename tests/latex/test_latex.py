"""LaTeX compiles a two-column article with every table and figure of a report, and none is wider than its place."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from projects import ROOT

from floral.config import suites
from floral.config.run import Run
from floral.report.build import report
from floral.report.latex import SIGNS, SPECIAL, article
from floral.report.style import Style
from floral.report.tables import Cell, Column, grid
from floral.runs.reference import restore

MAX_OVERFULL_PT = 5.0


@pytest.fixture
def compiled(missing: Callable[[str], NoReturn]) -> Callable[[Path], str]:
    """A function that compiles article.tex in a folder, and returns the log."""
    if shutil.which("pdflatex") is None:
        missing("pdflatex: no program of this name on the path; .ci/setup installs it")

    def compile(folder: Path) -> str:
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, errors="replace")
        assert done.returncode == 0, done.stdout[-3000:]
        return (folder / "article.log").read_text(encoding="latin-1").replace("\n", "")

    return compile


def check(log: str) -> None:
    overfull = [float(points) for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log)]
    assert max(overfull, default=0.0) <= MAX_OVERFULL_PT, overfull
    assert "too large for page" not in log and "Missing character" not in log


def test_a_report_compiles(compiled: Callable[[Path], str], suite_runs: list[Run], results: Path) -> None:
    folder = report("quickstart", suite_runs, results, results.parent / "reports", partial=True).parent
    source = (folder / "article.tex").read_text(encoding="utf-8")
    for table in (folder / "tables").glob("*.tex"):
        assert rf"\input{{tables/{table.name}}}" in source
    for figure in (folder / "figures").glob("*.pdf"):
        assert f"{{figures/{figure.name}}}" in source
    check(compiled(folder))
    compact = (folder / "tables" / "compact.tex").read_text(encoding="utf-8")
    assert r"FLoRAL 1 \% & 86.0 $\pm$ 1.0" in compact
    assert r"(errors: geometric mean $\times$/$\div$ geometric standard deviation over seeds)" in compact
    assert "n = 3 seeds where no other n is given" in compact and r"1/3 diverged" in compact
    assert "n = 3 seeds where no other n is given" in (folder / "tables" / "main.tex").read_text(encoding="utf-8")


FEW = ["fedavg", "local", "local_adaptor", "ensemble", "fedit", "floral_1", "floral_10"]


@pytest.mark.parametrize(
    ("suite", "selected"),
    [
        ("paper_mnist_reduced", {}),
        ("methods", {"tasks": ["digits_rotate"], "seeds": [0, 1]}),
        ("methods", {"variants": FEW, "seeds": [0, 1]}),
    ],
    ids=["paper_mnist_reduced", "all methods on one task", "few methods on all tasks"],
)
def test_the_report_of_reference_results_compiles(
    compiled: Callable[[Path], str], tmp_path: Path, suite: str, selected: dict[str, list[Any]]
) -> None:
    """The report of all runs of `methods` takes minutes, so it is made in two parts."""
    runs = suites.suite_runs(suite, **selected)
    restore({suite: runs}, tmp_path / "results", ROOT / "reports" / "reference")
    folder = report(suite, runs, tmp_path / "results", tmp_path / "reports", partial=True).parent
    assert (folder / "tables" / "compact.tex").is_file() and list((folder / "figures").glob("*.pdf"))
    check(compiled(folder))


def test_a_wide_and_long_table_compiles(compiled: Callable[[Path], str], tmp_path: Path) -> None:
    """It has 90 methods of 9 families, 12 columns with long titles, and every sign that has a command."""
    signs = "".join(SPECIAL | SIGNS)
    columns = [
        Column(id=str(k), title=f"A long title of column {k}", spanner=f"Half {k // 6} of it") for k in range(12)
    ]
    rows = [
        (
            Style(
                id=str(k), title=f"Method {k}, with changes", short="M", family=f"Family {k // 10}", group="method",
                colour="#aa0000", dashed=False,
            ),
            {str(c): Cell(text="-12.34 ± 5.67", note="n = 2; 1/3 diverged", mark="best") for c in range(12)},
        )
        for k in range(90)
    ]  # fmt: skip
    (tmp_path / "tables").mkdir()
    table = grid("wide", columns, rows, f"Signs: {signs}").latex
    assert table.count(r"\begin{table*}") == 3 and table.count("continued.") == 2 and table.count(r"\label{tab:") == 1
    assert "Bold results cannot be told from the best one." in table
    narrow = grid("narrow", columns[:1], [(rows[0][0], {"0": Cell(text="1")})], "One column").latex
    assert r"\begin{table}" in narrow and "Bold" not in narrow
    for name, text in (("wide", table), ("narrow", narrow)):
        (tmp_path / "tables" / f"{name}.tex").write_text(text, encoding="utf-8")
    (tmp_path / "article.tex").write_text(article("Title, 1 %", [], [["wide", "narrow"]]), encoding="utf-8")
    check(compiled(tmp_path))

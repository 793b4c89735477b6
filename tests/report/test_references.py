"""What README and documentation say of the committed reference results is what these hold."""

from __future__ import annotations

import re

import polars as pl
from printed import decisions, read_page
from projects import ROOT

SUITES = ("paper_mnist", "paper_mnist_reduced")
COUNTS = re.compile(
    r"Of (\d+) published cells in this report under official fidelity: "
    r"(\d+) agrees, (\d+) differs, (\d+) inconclusive\. In (\d+) of the inconclusive cells"
)
CLAIM = re.compile(
    r"Of the (\d+) published MNIST cells, (\d+) agree with our runs, (\d+) differs, and (\d+) are inconclusive\. "
    r"In (\d+) of the inconclusive cells the published spread alone is too wide"
)


def test_the_guide_counts_the_published_cells_as_the_pages_do() -> None:
    pages = [read_page(ROOT / f"reports/reference/{suite}/index.html") for suite in SUITES]
    found = [COUNTS.search(re.sub(r"<[^>]+>|\s+", " ", page)) for page in pages]
    counted = [sum(column) for column in zip(*(map(int, one.groups()) for one in found if one), strict=True)]
    guide = (ROOT / "docs/how-to/reference-results.md").read_text(encoding="utf-8")
    claim = CLAIM.search(guide.replace("\n", " "))
    assert all(found) and claim and counted == [int(number) for number in claim.groups()]


def test_no_verdict_of_the_methods_page_contradicts_its_interval() -> None:
    page = read_page(ROOT / "reports/reference/methods/index.html")
    assert len(decisions(page)) > 200
    for row in decisions(page):
        row.check()


def test_every_task_of_the_methods_page_names_its_best_methods() -> None:
    page = read_page(ROOT / "reports/reference/methods/index.html")
    tasks = pl.read_parquet(ROOT / "reports/reference/methods/summary.parquet")["task"].n_unique()
    assert page.count("methods that cannot be told from the best</") == tasks
    assert "May be worse by" in page and "Detectable" in page


def test_the_table_of_the_readme_has_the_means_of_the_runs() -> None:
    runs = pl.read_parquet(ROOT / "reports/reference/paper_mnist_reduced/summary.parquet")
    runs = runs.filter(pl.col("fidelity") == "corrected")
    assert (runs["status"] == "done").all() and sorted(runs["seed"].unique()) == list(range(10))
    accuracy = 100 * pl.col("test_accuracy")
    cells = runs.group_by("title", "task").agg(accuracy.mean().alias("mean"), accuracy.std().alias("deviation"))
    found = {(title, task): f"{mean:.1f} ± {deviation:.1f}" for title, task, mean, deviation in cells.iter_rows()}
    rows = re.findall(
        r"^\| ([^|]+) \| (\d+\.\d ± \S+) \| (\d+\.\d ± \S+) \|$", (ROOT / "README.md").read_text("utf-8"), re.M
    )
    tasks = ("mnist_rotate_reduced", "mnist_label_shift_reduced")
    assert {(title, task): cell for title, *row in rows for task, cell in zip(tasks, row, strict=True)} == found


def test_the_guide_names_every_suite_with_reference_results() -> None:
    guide = (ROOT / "docs/how-to/reference-results.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", guide, re.M)) == {
        path.name for path in (ROOT / "reports/reference").iterdir()
    }

"""What README and documentation say of the committed reference results is what these hold."""

from __future__ import annotations

import re

import polars as pl
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
    pages = [(ROOT / f"reports/reference/{suite}/index.html").read_text(encoding="utf-8") for suite in SUITES]
    found = [COUNTS.search(re.sub(r"<[^>]+>|\s+", " ", page)) for page in pages]
    counted = [sum(column) for column in zip(*(map(int, one.groups()) for one in found if one), strict=True)]
    guide = (ROOT / "docs/how-to/reference-results.md").read_text(encoding="utf-8")
    claim = CLAIM.search(guide.replace("\n", " "))
    assert all(found) and claim and counted == [int(number) for number in claim.groups()]


def decisions(page: str) -> list[tuple[str, str, str]]:
    """Return (difference, verdict, p) of every row of the tables of differences to FLoRAL 1 %."""
    (section,) = re.findall(r'<section id="decided">.*?</section>', page, re.DOTALL)
    tables = [table for table in re.findall(r"<table.*?</table>", section, re.DOTALL) if ">Verdict<" in table]
    rows = [row for table in tables for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL) if "swatch" in row]
    cells = [re.findall(r'<span class="cell[^>]*>([^<]*)</span>', row)[:3] for row in rows]
    return [tuple(cell.replace("\u00a0", " ").replace("\u2212", "-") for cell in row) for row in cells]


def ends(difference: str) -> tuple[float, float, float]:
    """Return the ends of a printed interval, and the value of no difference."""
    mean, *rest = map(float, re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", difference))
    return (mean - rest[0], mean + rest[0], 0.0) if "±" in difference else (*rest, 1.0)


def test_no_verdict_of_the_methods_page_contradicts_its_interval() -> None:
    page = (ROOT / "reports/reference/methods/index.html").read_text(encoding="utf-8")
    rows = [row for row in decisions(page) if row[1] != "equal"]
    assert len(rows) > 200
    for difference, verdict, p in rows:
        low, high, neutral = ends(difference)
        excluded = low > neutral + 1e-9 or high < neutral - 1e-9
        assert excluded == (verdict in ("better", "worse")), (difference, verdict)
        assert excluded or float(p) >= 0.05, (difference, p)


def test_every_task_of_the_methods_page_names_its_best_methods() -> None:
    page = (ROOT / "reports/reference/methods/index.html").read_text(encoding="utf-8")
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

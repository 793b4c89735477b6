"""What README says of the committed reference results is what their pages say."""

from __future__ import annotations

import re

from projects import ROOT

SUITES = ("paper_mnist", "paper_mnist_reduced")
COUNTS = re.compile(
    r"Of (\d+) published cells in this report under official fidelity: "
    r"(\d+) agrees, (\d+) differs, (\d+) inconclusive\. In (\d+) of them"
)
CLAIM = re.compile(
    r"Of the (\d+) published MNIST cells (\d+) agree with the runs there, (\d+) differs .*? "
    r"and (\d+) are inconclusive, (\d+) of these because of the published spread alone"
)


def test_readme_counts_the_cells_as_the_pages_do() -> None:
    pages = [(ROOT / f"reports/reference/{suite}/index.html").read_text(encoding="utf-8") for suite in SUITES]
    found = [COUNTS.search(re.sub(r"<[^>]+>|\s+", " ", page)) for page in pages]
    counted = [sum(column) for column in zip(*(map(int, one.groups()) for one in found if one), strict=True)]
    claim = CLAIM.search((ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " "))
    assert all(found) and claim and counted == [int(number) for number in claim.groups()]

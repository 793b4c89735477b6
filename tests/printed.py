"""What the tables of the report print, read back from their HTML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from floral.report.templates import unpacked


def read_page(path: Path) -> str:
    """Return the HTML of a page with the content of its folded sections."""
    return unpacked(path.read_text(encoding="utf-8"))


class Decision(NamedTuple):
    """One row of a table of differences to FLoRAL 1 %, as it is printed."""

    difference: str
    verdict: str
    p: str

    def check(self) -> None:
        """Assert that the verdict, the interval and p do not contradict each other."""
        if self.verdict in ("equal", "no interval"):
            return
        mean, *rest = map(float, re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", self.difference))
        low, high, neutral = (mean - rest[0], mean + rest[0], 0.0) if "±" in self.difference else (*rest, 1.0)
        excluded = low > neutral + 1e-9 or high < neutral - 1e-9
        assert excluded == (self.verdict in ("better", "worse")), self
        assert excluded or float(self.p) >= 0.05, self


def decisions(html: str) -> list[Decision]:
    """Return every row of the tables of differences to FLoRAL 1 %."""
    tables = [table for table in re.findall(r"<table.*?</table>", html, re.DOTALL) if ">Verdict<" in table]
    rows = [row for table in tables for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL) if "swatch" in row]
    cells = [re.findall(r'<span class="cell[^>]*>([^<]*)</span>', row)[:3] for row in rows]
    texts = [[cell.replace("\u00a0", " ").replace("\u2212", "-") for cell in row] for row in cells]
    return [Decision(*row) for row in texts if len(row) == 3 and row[1] in VERDICTS]


VERDICTS = ("better", "worse", "open", "equal", "no interval")

"""Cells and tables: as HTML for the page, with great_tables, and as LaTeX for a paper."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import great_tables as gt
import polars as pl

from floral.core.intervals import Interval
from floral.report import latex
from floral.report.style import Style

MINUS, PLUS_MINUS, THIN = "\u2212", "\u00b1", "\u2009"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table cell: its text, a note below it, its sort key and its highlight."""

    text: str
    note: str = ""
    order: float | None = None
    """The number that the column is sorted by."""
    mark: Literal["", "best"] = ""
    quiet: bool = False
    """Whether it is printed in grey."""


EMPTY = Cell(text="\u2013")


@dataclass(frozen=True, kw_only=True)
class Column:
    id: str
    title: str
    spanner: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    name: str
    html: str
    latex: str


def number(value: float, digits: int | None, sign: bool = False) -> str:
    """Return a number as text, with the minus sign U+2212. With `sign`, positive numbers get a plus sign.

    digits: number of decimals, or None for three significant digits.
    """
    form = "#.3g" if digits is None else f".{digits}f"
    text = f"{value:{'+' if sign else ''}{form}}".removesuffix(".")
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("e-0", "e-").replace("e+0", "e+").replace("-", MINUS)


def unbroken(text: str) -> str:
    """Put no-break spaces around `±` and before `%`, so that a value stays on one line."""
    return text.replace(" %", "\u00a0%").replace(f" {PLUS_MINUS} ", f"\u00a0{PLUS_MINUS}\u00a0")


def amount(value: float) -> str:
    """Return a number as text with three significant digits and a decimal prefix: 38640 gives 38.6 k."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{THIN}{prefix}"
    return f"{value:.3g}"


def interval_cell(
    interval: Interval, digits: int | None, sign: bool = False, note: str = "", mark: str = "", usual: int = 0
) -> Cell:
    """Return a cell with mean ± half the width of the interval, or with mean [low, high] if it is not symmetric.

    A single value has no interval. A ratio has no sign. With `sign`, the interval is that of a difference: it gets more
    digits if readers could not see otherwise whether it contains the value of no difference.

    The number of seeds n is written below if it is 1 or differs from `usual`, which is stated once for the whole page.
    """
    digits = _deciding_digits(interval, digits) if sign else digits
    text = interval_text(interval, digits, sign and interval.neutral == 0)
    count = f"n = {interval.n}" if interval.n != usual or interval.n == 1 else ""
    return Cell(text=text, note="; ".join(filter(None, (count, note))), order=interval.mean, mark=mark)  # type: ignore[arg-type]


def interval_text(interval: Interval, digits: int | None, sign: bool = False) -> str:
    """Return mean ± half the width of the interval, or mean [low, high] if it is not symmetric."""
    text = number(interval.mean, digits, sign)
    if interval.low is None or interval.high is None or interval.half_width is None:
        return text
    if interval.is_symmetric:
        return f"{text} {PLUS_MINUS} {number(interval.half_width, digits)}"
    return f"{text} [{number(interval.low, digits, sign)}, {number(interval.high, digits, sign)}]"


def _deciding_digits(interval: Interval, digits: int | None) -> int | None:
    """Return the digits with which the printed interval excludes the value of no difference exactly if it does."""
    if interval.low is None or interval.high is None or interval.half_width is None:
        return digits
    start = 3 if digits is None else digits + 1
    for more in (digits, *range(start, start + 3)):
        form = ".3g" if more is None else f".{more}f"
        exact = (interval.mean, interval.half_width, interval.low, interval.high)
        mean, half, low, high = (float(f"{value:{form}}") for value in exact)
        is_outside = low > interval.neutral or high < interval.neutral
        if (abs(mean - interval.neutral) > half if interval.is_symmetric else is_outside) == interval.is_decided:
            return more
    return digits


def grid(name: str, columns: Sequence[Column], rows: Sequence[tuple[Style, Mapping[str, Cell]]], caption: str) -> Table:
    """Build a table with one row per method, grouped by family. A missing cell shows a dash."""
    return Table(
        name=name,
        html=_strip(_gt(name, columns, rows).as_raw_html()),
        latex=latex.table(name, columns, rows, caption, EMPTY),
    )


def _gt(name: str, columns: Sequence[Column], rows: Sequence[tuple[Style, Mapping[str, Cell]]]) -> gt.GT:
    data = {
        "group": [style.group_title for style, _ in rows],
        "name": [_html_name(style) for style, _ in rows],
        **{column.id: [_html_cell(cells.get(column.id, EMPTY)) for _, cells in rows] for column in columns},
    }
    ids = [column.id for column in columns]
    table = gt.GT(pl.DataFrame(data), rowname_col="name", groupname_col="group", id=name)
    table = table.fmt_passthrough(columns=["name", *ids], escape=False)
    table = table.cols_label({column.id: unbroken(column.title) for column in columns}).cols_align("right", columns=ids)
    for spanner in dict.fromkeys(column.spanner for column in columns if column.spanner):
        table = table.tab_spanner(unbroken(spanner), [column.id for column in columns if column.spanner == spanner])
    return table


def _html_name(style: Style) -> str:
    kind = "swatch dashed" if style.dashed else "swatch"
    return f'<span class="{kind}" style="--c:{style.colour}"></span>{html.escape(unbroken(style.title))}'


def _html_cell(cell: Cell) -> str:
    order = "" if cell.order is None else f' data-order="{cell.order:.6g}"'
    note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
    kind = " quiet" if cell.quiet else f" {cell.mark}"
    return f'<span class="cell{kind}"{order}>{html.escape(cell.text)}</span>{note}'


def _strip(text: str) -> str:
    """Return the <table> element without the styles of great_tables, which would override the page's style sheet."""
    table = text[text.index("<table") : text.index("</table>") + len("</table>")]
    return re.sub(r' (style|data-quarto-[a-z-]+)="[^"]*"(?=[^<]*<(?:thead|tr))', "", table, count=3)

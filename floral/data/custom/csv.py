"""Read a CSV file as text, cell by cell, and say which line is wrong if it is no table."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import polars as pl

from floral.data.sources import DataError

SEPARATORS = ",;\t|"
"""Characters that often separate the cells of a CSV file."""
NO_HEADER = ("#", "sep=", '"sep=')
"""Starts of lines that some programs write before the names of the columns."""
NAMELESS = "(column {} without a name)"
GROUPS = re.compile(r"[+-]?\d{1,3}([.,' _\u00a0\u2019\u202f])\d{3}(\1\d{3})*((?!\1)[.,]\d*)?")
"""A number with separators of thousands, as 1,234.5 or 1 234 567."""
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")


def read_csv(path: Path, content: bytes, separator: str) -> pl.DataFrame:
    """Return the cells of a CSV file as text. The first line holds the names of the columns.

    An empty cell is null, and the quoted text "" is an empty text. Lines without any value stay, as rows of nulls, so
    that the number of a row is that in the file.

    Raises:
        DataError: the file is not UTF-8, has no header, or a line has more cells than the header.
    """
    without_mark = content.removeprefix(b"\xef\xbb\xbf")
    text = without_mark.lstrip(b"\r\n")
    empty_lines = len(without_mark[: len(without_mark) - len(text)].splitlines())
    if b"\n" not in text:
        text = text.replace(b"\r", b"\n")  # the line ends of old spreadsheets
    if not text.strip():
        raise DataError(f"{path}: this file is empty; write a line with the names of the columns, and the rows below")
    try:
        cells = pl.read_csv(io.BytesIO(text), separator=separator, has_header=False, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise DataError(f"{path}: {_why_no_table(text, separator, empty_lines)}") from None
    header = [name if name and name.strip() else NAMELESS.format(at) for at, name in enumerate(cells.row(0), 1)]
    if repeated := [name for name in header if header.count(name) > 1]:
        raise DataError(
            f"{path}: the header has the column {repeated[0]!r} twice; give each column its own name, and write the "
            "names in the first line"
        )
    return cells[1:].rename(dict(zip(cells.columns, header, strict=True)))


def other_separator(header: str, separator: str) -> str:
    """Return the advice to set `data.separator`, if another character splits a header into more cells, otherwise ""."""
    best = max(SEPARATORS, key=header.count)
    more = header.count(best) > header.count(separator)
    return f"set `data.separator: {json.dumps(best)}`" if more else ""


def remedy_for_number(value: str, decimal: str) -> str | None:
    """Return why a text with separators of thousands, or with another decimal sign, is no number, and the remedy.

    `decimal` is the decimal sign that is expected. Return None for another text.
    """
    other_decimal = "," if decimal == "." else "."
    use_other = f"set `data.decimal: {json.dumps(other_decimal)}`"
    if groups := GROUPS.fullmatch(value):
        sign, repeated, tail = groups[1], groups[2], groups[3]
        if sign != other_decimal or repeated or tail:
            also = f", and {use_other}" if sign == decimal or (tail and tail[0] != decimal) else ""
            return f"has the thousands separator {sign!r}; write numbers without it{also}"
    if decimal == "." and DECIMAL_COMMA.fullmatch(value):
        thousands = "; if it separates thousands, write numbers without it" if groups else ""
        return f"is not a finite number; {use_other} if the comma is a decimal comma{thousands}"
    if decimal == "," and DECIMAL_POINT.fullmatch(value):
        return 'has a point, but `data.decimal` is ","; correct the value, or remove the key'
    return None


def _why_no_table(text: bytes, separator: str, empty_lines: int) -> str:
    """Return why a text is no CSV table, with the line and the remedy. `empty_lines` is the number of lines before."""
    kind = "this is not a csv file in UTF-8"
    try:
        lines = csv.reader(io.StringIO(text.decode(), newline=""), delimiter=separator, strict=True)
    except UnicodeDecodeError as error:
        if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return f"{kind}, but in UTF-16; save it in UTF-8"
        line = empty_lines + text.count(b"\n", 0, error.start) + 1
        return f"{kind}: line {line} has the byte 0x{text[error.start]:02x}; save it in UTF-8"
    line = empty_lines + 1  # A row with line ends in quoted cells has several lines; this is its first.
    try:
        header = next(lines)
        line = empty_lines + lines.line_num + 1
        for cells in lines:
            if len(cells) > len(header):
                first = text.decode().splitlines()[0]
                remedy = other_separator(first, separator) or "give each line one cell per column"
                if first.startswith(NO_HEADER):
                    remedy = "remove the lines before the names of the columns"
                return (
                    f"line {line} has {len(cells)} cells separated by {json.dumps(separator)}, but the first "
                    f"line, {first[:60]!r}, has {len(header)}; {remedy}"
                )
            line = empty_lines + lines.line_num + 1
    except csv.Error as error:
        return f"{kind}: line {line}: {error}; correct the quotation marks there"
    return f"{kind}: a quotation mark is in the wrong place; write each cell without, or wholly within, quotation marks"

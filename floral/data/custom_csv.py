"""Read a CSV file as text, cell by cell, and say which line is wrong if it is no table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import polars as pl

from floral.data.sources import DataError

SEPARATORS = ",;\t|"
"""Characters that often separate the cells of a CSV file."""


def read_csv(path: Path, content: bytes, separator: str) -> pl.DataFrame:
    """Return the cells of a CSV file as text. The first line holds the names of the columns.

    An empty cell is null, and the quoted text "" is an empty text. Lines without any value stay, as rows of nulls, so
    that the number of a row is that in the file.

    Raises:
        DataError: the file is not UTF-8, has no header, or a line has more cells than the header.
    """
    text = content.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if b"\n" not in text:
        text = text.replace(b"\r", b"\n")  # the line ends of old spreadsheets
    if not text.strip():
        raise DataError(f"{path}: this file is empty; write a line with the names of the columns, and the rows below")
    try:
        cells = pl.read_csv(io.BytesIO(text), separator=separator, has_header=False, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise DataError(f"{path}: {_why_no_table(text, separator)}") from None
    header = [name or f"(column {at} without a name)" for at, name in enumerate(cells.row(0), 1)]
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


def _why_no_table(text: bytes, separator: str) -> str:
    """Return why a text is no CSV table, with the line and the remedy."""
    kind = "this is not a csv file in UTF-8"
    try:
        lines = csv.reader(io.StringIO(text.decode(), newline=""), delimiter=separator, strict=True)
    except UnicodeDecodeError as error:
        if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return f"{kind}, but in UTF-16; save it in UTF-8"
        line = text.count(b"\n", 0, error.start) + 1
        return f"{kind}: line {line} has the byte 0x{text[error.start]:02x}; save it in UTF-8"
    try:
        header = next(lines)
        for cells in lines:
            if len(cells) > len(header):
                first = text.decode().splitlines()[0]
                remedy = other_separator(first, separator) or "give each line one cell per column"
                if first.startswith(("#", "sep=", '"sep=')):
                    remedy = "remove the lines before the names of the columns"
                return (
                    f"line {lines.line_num} has {len(cells)} cells separated by {json.dumps(separator)}, but the first "
                    f"line, {first[:60]!r}, has {len(header)}; {remedy}"
                )
    except csv.Error as error:
        return f"{kind}: line {lines.line_num}: {error}; correct the quotation marks there"
    return f"{kind}: a quotation mark is in the wrong place; write each cell without, or wholly within, quotation marks"

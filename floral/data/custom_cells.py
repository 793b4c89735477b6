"""The cells of a custom table as text and numbers. A wrong cell is refused with its row, column and value."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from floral.data.custom_csv import other_separator, read_csv
from floral.data.custom_parts import MISSING_WORDS, Array, first_missing
from floral.data.sources import DataError, content

ROW_NUMBERS = re.compile(r"\(column \d+ without a name\)|Unnamed: \d+|__index_level_\d+__|")
"""Names of columns in which pandas and R store the numbers of the rows."""
COUNTER = re.compile(
    r"#|x|level_\d|((row|sample|record|case|item)s?)?[\W_]*(id|idx|index|no|nr|num|number|names?)?", re.I
)
"""Names of columns that number the rows, if they hold the integers of a range without a gap."""
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
MAX_NAMED = 20
"""Most columns that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of custom data, and how its cells are read."""

    path: Path
    frame: pl.DataFrame
    rows: Array
    """Number [N] of each row in the file, counted from 0."""
    index: Sequence[str] = ()
    """Columns that pandas marked as the index of a parquet file."""
    separator: str | None = None
    """Character between the cells of a CSV file; None for parquet."""
    decimal: str = "."
    missing: Sequence[str] | None = None
    """Words of the user for "no value", or None."""

    def cell(self, name: str, row: int) -> str:
        """Return the place of a cell, as text for a message."""
        return f"{self.path}: column {name!r}, row {self.rows[row]} (counted from 0)"

    def refuse(self, name: str, row: int, why: str) -> NoReturn:
        """Raise DataError for a cell. `why` continues a sentence that starts with the value of the cell."""
        raise DataError(f"{self.cell(name, row)}: {self.frame[name][row]!r} {why}")

    def check_columns(self, **named: Sequence[str]) -> None:
        """Raise DataError if the table lacks a column. `named` maps a key of `data` to the columns that it names."""
        columns = self.frame.columns
        for key, names in named.items():
            if absent := [name for name in names if name not in columns]:
                more = f" and {len(columns) - MAX_NAMED} others" if len(columns) > MAX_NAMED else ""
                remedy = other_separator(columns[0], self.separator) if self.separator and len(columns) == 1 else ""
                raise DataError(
                    f"{self.path}: `data.{key}` names the column {absent[0]!r}, which the table does not have; "
                    + (remedy or f"name one of {', '.join(columns[:MAX_NAMED])}{more}")
                )
        if not named["features"]:
            raise DataError(
                f"{self.path}: the table has no column of features, only labels (and clients); add columns of features"
            )

    def without_missing(self, used: Sequence[str]) -> Table:
        """Return the table without the rows that have a word of `data.missing` in a used column.

        Raises:
            DataError: no row is left.
        """
        keep = pl.repeat(True, self.frame.height, eager=True)
        for name in used if self.missing is not None else ():
            keep &= ~_is_missing(self.frame[name], self.missing or ())
        if not keep.any():
            raise DataError(
                f"{self.path}: there are no samples here, because each row has a missing value; correct `data.missing`"
            )
        return replace(self, frame=self.frame.filter(keep), rows=self.rows[keep.to_numpy()])


def read_table(path: Path, separator: str | None, decimal: str | None, missing: Sequence[str] | None) -> Table:
    """Read a parquet or CSV file.

    Raises:
        DataError: the file is no such table, or a key of `data` for CSV files is given for a parquet file.
    """
    suffix, index = Path(path.name.removesuffix(".gz")).suffix.lower(), []
    if suffix == ".csv":
        frame, separator = read_csv(path, content(path), separator or ","), separator or ","
    elif suffix == ".parquet":
        for key, value in (("separator", separator), ("decimal", decimal)):
            if value is not None:
                raise DataError(f"{path}: `data.{key}` is for CSV files, but this is a parquet file; remove the key")
        frame, index = _parquet(path)
    else:
        raise DataError(f"{path}: the file name must end in .parquet, .csv or .csv.gz; convert the file or rename it")
    # An empty line is no row, but it counts, so that the number of a row is that in the file.
    empty = pl.all_horizontal(pl.all().is_null()) if separator else pl.lit(False)
    rows = np.flatnonzero(~frame.select(pl.repeat(False, pl.len()) | empty).to_series().to_numpy())
    frame = frame[rows]
    if not len(rows):
        raise DataError(f"{path}: the table has names of columns, but no rows, so there are no samples here; add rows")
    return Table(
        path=path, frame=frame, rows=rows, index=index, separator=separator, decimal=decimal or ".",
        missing=missing,
    )  # fmt: skip


def refuse_row_numbers(tables: Sequence[Table], names: Sequence[str]) -> None:
    """Raise DataError if a column holds the numbers of the rows. In a sorted table, they would give the classes away.

    Such a column has no name or one that pandas gives. Or it has a name such as "id", and holds the integers of a range
    without a gap, in any order.
    """
    for name in names:
        columns = [_integers(sheet.frame[name]) for sheet in tables]
        if (
            ROW_NUMBERS.fullmatch(name)
            or any(name in sheet.index for sheet in tables)
            or (COUNTER.fullmatch(name) and (_without_gap(np.concatenate(columns)) or all(map(_without_gap, columns))))
        ):
            raise DataError(
                f"{tables[0].path}: column {name!r} seems to number the rows, so it is no feature; remove it (pandas: "
                "`index=False`), or list the columns to use in `data.features`"
            )


def is_image(kind: pl.DataType) -> bool:
    """Return whether a parquet column of this type holds encoded images: bytes, or a struct of bytes and path."""
    fields = kind.to_schema() if isinstance(kind, pl.Struct) else {"bytes": kind}
    return fields.get("bytes") == pl.Binary


def numbers(table: Table, name: str) -> Array:
    """Return a column of finite numbers [N]. In a CSV file, the words true and false are 1 and 0.

    Raises:
        DataError: a cell is empty, not a number, or too large for single precision.
    """
    column = table.frame[name]
    text = table.separator is not None
    if not (text or column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise DataError(
            f"{table.path}: column {name!r} has type {column.dtype}, but features must be numbers; list the numeric "
            "columns in `data.features`"
        )
    parsed = (_parsed(column, table.decimal) if text else column.cast(pl.Float64)).to_numpy()
    bad = np.flatnonzero(~np.isfinite(parsed))
    if text and len(bad) == len(column) and column.null_count() < len(column):
        lower = column.str.strip_chars().str.to_lowercase()
        if lower.is_in(["true", "false"]).all():
            return (lower == "true").cast(pl.Float64).to_numpy()
    if bad.size:
        row, value = int(bad[0]), column[int(bad[0])]
        if text and DECIMAL_COMMA.fullmatch(value or "") and table.decimal == ".":
            table.refuse(name, row, 'is not a finite number; set `data.decimal: ","` if the comma is a decimal comma')
        if text and table.decimal == "," and "." in (value or ""):
            table.refuse(name, row, 'has a point, but `data.decimal` is ","; correct the value, or remove the key')
        words = column.filter(~_is_missing(column, MISSING_WORDS)) if text else column.clear()
        if len(words) and not np.isfinite(_parsed(words, table.decimal).to_numpy()).any():
            raise DataError(
                f"{table.path}: column {name!r} has type String, but features must be numbers; list the numeric "
                f"columns in `data.features` (row {table.rows[row]} has {value!r})"
            )
        word = json.dumps("" if value is None else value.strip() if text else "NaN")
        table.refuse(
            name, row, f"is not a finite number; give such rows finite values, or remove them, or set `data.missing: "
            f"[{word}]` to leave them out",
        )  # fmt: skip
    if (large := np.flatnonzero(np.abs(parsed) > np.finfo(np.float32).max)).size:
        table.refuse(name, int(large[0]), "is too large for single precision; correct it, or remove the row")
    return parsed


def values(table: Table, name: str) -> Array:
    """Return a column of classes or clients [N]: numbers unchanged, and all other values as text.

    Raises:
        DataError: a cell has no value, or the type of the column is neither number nor text.
    """
    column = table.frame[name]
    if column.null_count():
        raise DataError(
            f"{table.cell(name, int(column.is_null().arg_true()[0]))} has no value; give such rows a value, or remove "
            'them, or set `data.missing: [""]` to leave them out'
        )
    kind = column.dtype
    if not (kind.is_numeric() or kind.is_temporal() or kind in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)):
        raise DataError(
            f"{table.path}: column {name!r} has type {kind}, but classes and clients must be words or integers; name "
            "another column, or convert this one"
        )
    names = _values(column, table.decimal)
    if (row := first_missing(names, MISSING_WORDS if table.missing is None or table.missing else ())) is not None:
        remedy = f"to leave such rows out, or `data.missing: []` if {str(names[row])!r} is a name"
        word = str(names[row]).strip()
        table.refuse(
            name, row, f"means that there is no value; set `data.missing: [{json.dumps(word)}]` "
            + (remedy if word else "to leave such rows out"),
        )  # fmt: skip
    return names


def _values(column: pl.Series, decimal: str) -> Array:
    if column.dtype == pl.Duration:
        column = column.cast(pl.Int64)
    if column.dtype.is_integer() or column.dtype == pl.String:
        integers = column.cast(pl.Int64, strict=False)
        if not integers.null_count():
            return integers.to_numpy()
    if column.dtype.is_float() or column.dtype.is_decimal():
        return column.cast(pl.Float64).to_numpy()
    text = column.cast(pl.String)
    if not text.str.contains(r"^[+-]?\d+$").all() and not (parsed := _parsed(text, decimal)).null_count():
        return parsed.to_numpy()
    return text.to_numpy().astype(np.str_)


def _parsed(text: pl.Series, decimal: str) -> pl.Series:
    """Return the numbers that text stands for, and null where it is no number."""
    text = text.str.strip_chars()
    if decimal != ".":
        point = text.str.contains(".", literal=True).fill_null(False)
        text = text.str.replace(decimal, ".", literal=True).set(point, None)
    return text.cast(pl.Float64, strict=False)


def _is_missing(column: pl.Series, words: Sequence[str] | frozenset[str]) -> pl.Series:
    """Return which cells hold one of these words. A number equals a word that is written in another way, as 1.0 and 1.

    An empty cell equals the word "".
    """
    missing = column.is_null() if "" in words else pl.repeat(False, len(column), eager=True)
    text = column.dtype in (pl.String, pl.Categorical, pl.Enum)
    if text:
        missing |= column.cast(pl.String).str.strip_chars().is_in(sorted(words)).fill_null(False)
    if text or column.dtype.is_numeric():
        parsed = _parsed(column.cast(pl.String), ".") if text else column.cast(pl.Float64)
        numbers_missing = _parsed(pl.Series(sorted(words), dtype=pl.String), ".").drop_nulls()
        missing |= parsed.is_in(numbers_missing.drop_nans()).fill_null(False)
        if not text and numbers_missing.is_nan().any():
            missing |= parsed.is_nan().fill_null(False)
    return missing


def _integers(column: pl.Series) -> Array:
    """Return a column of integers, or an empty array if the column has other values."""
    if not (column.dtype.is_integer() or column.dtype == pl.String):
        return np.empty(0, np.int64)
    integers = column.cast(pl.Int64, strict=False)
    return np.empty(0, np.int64) if integers.null_count() else integers.to_numpy()


def _without_gap(integers: Array) -> bool:
    distinct = np.unique(integers)
    return len(integers) > 1 and len(distinct) == len(integers) == int(distinct[-1]) - int(distinct[0]) + 1


def _parquet(path: Path) -> tuple[pl.DataFrame, list[str]]:
    """Return a parquet table and the columns that pandas marked as its index.

    The file is first read in a separate process. On some damaged files, Polars aborts the process that reads them. Then
    only the separate process ends, and this process can report the error.

    Raises:
        DataError: the file cannot be read.
    """
    stream = io.BytesIO(content(path))
    script = (
        "import io, sys, polars; stream = io.BytesIO(sys.stdin.buffer.read()); polars.read_parquet(stream); "
        "polars.read_parquet_metadata(stream)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=stream.getvalue(), capture_output=True)
    try:
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(lines[-1] if lines else f"reading it ended with exit code {done.returncode}")
        frame, metadata = pl.read_parquet(stream), pl.read_parquet_metadata(stream)
        index = json.loads(metadata.get("pandas", "{}")).get("index_columns", [])
        return frame, [name for name in index if isinstance(name, str)]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: this is not a parquet file in UTF-8, or it is truncated ({error}); remedy: write it again"
        ) from None

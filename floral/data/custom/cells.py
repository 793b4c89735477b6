"""The cells of a custom table as text and numbers. A wrong cell is refused with its row, column and value."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from floral.data.custom.csv import NAMELESS, NO_HEADER, other_separator, read_csv, remedy_for_number
from floral.data.custom.parts import MISSING_WORDS, Array, file_type, first_missing
from floral.data.sources import DataError, content

INFINITY = re.compile(r"[+-]?inf(inity)?", re.I)
NUMBER = r"^\s*[+-]?[0-9]+(\.[0-9]+)?\s*$"
"""Numbers as names of classes and clients. "01" is another name than "1"."""
INTEGER = r"^\s*[+-]?[0-9]+\s*$"
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
                if self.separator and columns[0].startswith(NO_HEADER):
                    remedy = "remove the lines before the names of the columns"
                raise DataError(
                    f"{self.path}: `data.{key}` names the column {absent[0]!r}, which the table does not have; "
                    + (remedy or f"name one of {', '.join(columns[:MAX_NAMED])}{more}")
                )
        if "features" in named and not named["features"]:
            raise DataError(f"{self.path}: no column is left for the features; add columns of features")

    def without_missing(self, features: Sequence[str], names: Sequence[str]) -> Table:
        """Return the table without the rows that have a word of `data.missing` in one of these columns.

        The columns `names` hold names of clients and classes, in which 01 is another word than 1.

        Raises:
            DataError: no row is left.
        """
        keep = pl.repeat(True, self.frame.height, eager=True)
        for name in (*names, *features) if self.missing is not None else ():
            keep &= ~_is_missing(self.frame[name], self.missing or (), None if name in names else self.decimal)
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
    suffix, index = file_type(path), []
    if suffix == ".csv":
        frame, separator = read_csv(path, content(path), separator or ","), separator or ","
    elif suffix == ".parquet":
        for key, value in (("separator", separator), ("decimal", decimal)):
            if value is not None:
                raise DataError(f"{path}: `data.{key}` is for CSV files, but this is a parquet file; remove the key")
        frame, index = _parquet(path)
        frame = frame.rename(
            {name: NAMELESS.format(at) for at, name in enumerate(frame.columns, 1) if not name.strip()}
        )
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
        word = str("" if value is None else value).strip()
        if text and (why := remedy_for_number(word, table.decimal)):
            table.refuse(name, row, why)
        remedy = f"set `data.missing: [{json.dumps(word if text or np.isinf(parsed[row]) else 'NaN')}]` to leave "
        if INFINITY.fullmatch(word):
            table.refuse(name, row, f"is infinite; correct it, remove the row, or {remedy}such rows out")
        if np.isinf(parsed[row]):
            table.refuse(name, row, "is too large for single precision; correct it, or remove the row")
        words = column.filter(~_is_missing(column, MISSING_WORDS, table.decimal)) if text else column.clear()
        if len(words) and not np.isfinite(_parsed(words, table.decimal).to_numpy()).any():
            raise DataError(
                f"{table.path}: column {name!r} has type String, but features must be numbers; list the numeric "
                f"columns in `data.features` (row {table.rows[row]} has {value!r})"
            )
        table.refuse(
            name, row, f"is not a finite number; give such rows finite values, or remove them, or {remedy}them out"
        )
    if (large := np.flatnonzero(np.abs(parsed) > np.finfo(np.float32).max)).size:
        table.refuse(name, int(large[0]), "is too large for single precision; correct it, or remove the row")
    return parsed


def integers(column: pl.Series, decimal: str) -> Array:
    """Return the integers of a column, without cells that are no numbers; empty if it has other numbers.

    The result is exact where all integers fit into 64 bits.
    """
    if column.dtype != pl.String and not column.dtype.is_numeric():
        return np.empty(0, np.int64)
    parsed = _parsed(column, decimal) if column.dtype == pl.String else column.cast(pl.Float64)
    is_number = parsed.is_finite().fill_null(False)
    parsed = parsed.filter(is_number)
    if not (parsed == parsed.round()).all():
        return np.empty(0, np.int64)
    exact = column.filter(is_number).cast(pl.Int64, strict=False)
    return (parsed if exact.null_count() else exact).to_numpy()


def classes(tables: Sequence[Table], name: str) -> list[Array]:
    """Return the classes [N] in a column of each table, as `names` does, but decimal numbers of CSV files as floats.

    Raises:
        DataError: as in `names`.
    """
    columns = names(tables, name)
    texts = pl.concat([pl.Series(column.astype(np.str_), dtype=pl.String) for column in columns])
    parsed = _parsed(texts, tables[0].decimal)
    if parsed.null_count() or texts.str.contains(INTEGER).all():
        return columns
    return np.split(parsed.to_numpy(), np.cumsum([*map(len, columns)])[:-1])


def names(tables: Sequence[Table], name: str) -> list[Array]:
    """Return the classes or clients [N] in a column of each table: integers, the numbers of a parquet file, or texts.

    Texts are integers if all of them are written as Python writes integers: "1", but not "01", " 1" or "1.0".

    Raises:
        DataError: a cell has no value, or the type of the column is neither number nor text.
    """
    columns = [_named(table, name) for table in tables]
    texts = [column for column in columns if column.dtype == pl.String]
    other_numbers = any((column.str.contains(NUMBER) & ~_plain_integers(column)).any() for column in texts)
    arrays: list[Array] = []
    for column in columns:
        if column.dtype != pl.String:
            arrays.append(column.to_numpy())
        elif other_numbers or not _plain_integers(column).all():
            arrays.append(column.to_numpy().astype(np.str_))
        else:
            arrays.append(column.cast(pl.Int64).to_numpy())
    return arrays


def _named(table: Table, name: str) -> pl.Series:
    """Return a column of classes or clients: numbers of a parquet file as Int64 or Float64, all else as texts.

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
    if kind.is_integer() or kind == pl.Duration:
        exact = column.cast(pl.Int64, strict=False)
        column = column.cast(pl.String) if exact.null_count() else exact
    else:
        column = column.cast(pl.Float64 if kind.is_float() or kind.is_decimal() else pl.String)
    named = column.to_numpy().astype(np.str_) if column.dtype == pl.String else column.to_numpy()
    if (row := first_missing(named, MISSING_WORDS if table.missing is None or table.missing else ())) is not None:
        remedy = f"to leave such rows out, or `data.missing: []` if {str(named[row])!r} is a name"
        word = str(named[row]).strip()
        table.refuse(
            name, row, f"means that there is no value; set `data.missing: [{json.dumps(word)}]` "
            + (remedy if word else "to leave such rows out"),
        )  # fmt: skip
    return column


def _plain_integers(texts: pl.Series) -> pl.Series:
    """Return which texts are integers of 64 bits in the way in which Python writes them."""
    return (texts.cast(pl.Int64, strict=False).cast(pl.String) == texts).fill_null(False)


def _parsed(text: pl.Series, decimal: str) -> pl.Series:
    """Return the numbers that text stands for, and null where it is no number."""
    text = text.str.strip_chars()
    if decimal != ".":
        point = text.str.contains(".", literal=True).fill_null(False)
        text = text.str.replace(decimal, ".", literal=True).set(point, None)
    return text.cast(pl.Float64, strict=False)


def _is_missing(column: pl.Series, words: Sequence[str] | frozenset[str], decimal: str | None) -> pl.Series:
    """Return which cells hold one of these words. An empty cell equals the word "".

    A number equals a word that is written in another way, as 1.0 and 1. `decimal` is the decimal separator of numbers
    in the column. If it is None, cells of text are compared as text only.
    """
    missing = column.is_null() if "" in words else pl.repeat(False, len(column), eager=True)
    text = column.dtype in (pl.String, pl.Categorical, pl.Enum)
    if text:
        missing |= column.cast(pl.String).str.strip_chars().is_in(sorted(words)).fill_null(False)
    if (text and decimal is not None) or column.dtype.is_numeric():
        parsed = _parsed(column.cast(pl.String), decimal or ".") if text else column.cast(pl.Float64)
        written = pl.Series(sorted(words), dtype=pl.String)
        numbers_missing = _parsed(written, ".").drop_nulls()
        if decimal == ",":
            numbers_missing = numbers_missing.append(_parsed(written, ",").drop_nulls())
        missing |= parsed.is_in(numbers_missing.drop_nans().to_list()).fill_null(False)
        if not text and numbers_missing.is_nan().any():
            missing |= parsed.is_nan().fill_null(False)
    return missing


def _parquet(path: Path) -> tuple[pl.DataFrame, list[str]]:
    """Return a parquet table and the columns that pandas marked as its index.

    The file is first read in a separate process. On some damaged files, Polars aborts the process that reads them. Then
    only the separate process ends, and this process can report the error.

    Raises:
        DataError: the file cannot be read.
        MemoryError: the memory is too small.
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
            if done.returncode == -signal.SIGKILL or (lines and lines[-1].startswith("MemoryError")):
                raise MemoryError  # The operating system kills a process for which the memory is too small.
            raise OSError(lines[-1] if lines else f"reading it ended with exit code {done.returncode}")
        frame, metadata = pl.read_parquet(stream), pl.read_parquet_metadata(stream)
        index = json.loads(metadata.get("pandas", "{}")).get("index_columns", [])
        return frame, [name for name in index if isinstance(name, str)]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: this is not a parquet file in UTF-8, or it is truncated ({error}); remedy: write it again"
        ) from None

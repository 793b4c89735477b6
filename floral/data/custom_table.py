"""Read custom data from parquet or CSV tables with one sample per row."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from floral.data.custom_parts import SPLITS, Array, Part, entries_of, labelled, split_or_not
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile, content


def table(
    files: Sequence[RawFile], *, label: str, features: Sequence[str] | None, client: str | None, test_share: float
) -> Labelled:
    """Read a table with one sample per row from a parquet or CSV file.

    `files` may also be a folder with two files, train.* and test.*.

    Each feature becomes (v − mean) / std, with the mean and the standard deviation of the training samples. A feature
    that is constant in training becomes 0. By default, the features are all columns except `label` and `client`.

    Raises:
        DataError: a file is unreadable, a column is missing or has wrong values, or the split is not possible.
    """
    root = files[0].location
    stems = {path.name.split(".")[0]: path for path in entries_of(root)} if root.is_dir() else {}
    places = split_or_not(root, stems) if stems else [root]
    if root.is_dir() and (places == [root] or len(entries_of(root)) > len(places)):
        raise DataError(
            f"{root}: this folder must contain one file train.* and one file test.* (parquet or CSV), and nothing "
            "else; remove other files, or set `data.path` to a single file"
        )
    frames = [_frame(place) for place in places]
    features = features or [name for name in frames[0].columns if name not in (label, client)]
    parts = [_columns(place, frame, label, features, client) for place, frame in zip(places, frames, strict=True)]
    data = labelled(parts, test_share, scale=1)
    mean, std = data.train_x.mean(0), data.train_x.std(0)
    constant = data.train_x.max(0) == data.train_x.min(0)  # The computed std of a constant feature is rarely exactly 0.
    mean[constant], std[constant] = data.train_x[0][constant], 1
    scaled = {f"{side}_x": ((getattr(data, f"{side}_x") - mean) / std).astype(np.float32) for side in SPLITS}
    return replace(data, **scaled)


def _frame(path: Path) -> pl.DataFrame:
    kinds = {".parquet": _parquet, ".csv": lambda data: pl.read_csv(data, infer_schema_length=None)}
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in kinds:
        raise DataError(f"{path}: the file name must end in .parquet, .csv or .csv.gz; convert the file or rename it")
    try:
        return kinds[suffix](io.BytesIO(content(path)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(
            f"{path}: this is not a {suffix[1:]} file in UTF-8, or it is truncated ({error}); remedy: write it again"
        ) from None


def _parquet(stream: io.BytesIO) -> pl.DataFrame:
    """Read a parquet table, but only after a test in a separate process.

    On some damaged files, Polars aborts the process that reads them. In the test, the abort ends only the separate
    process, and this process can report the error.

    Raises:
        OSError: the separate process failed. The message is the last line of its error output.
    """
    script = "import io, sys, polars; polars.read_parquet(io.BytesIO(sys.stdin.buffer.read()))"
    done = subprocess.run([sys.executable, "-c", script], input=stream.getvalue(), capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(
            lines[-1]
            if lines
            else f"the file is probably damaged, because reading it ended with exit code {done.returncode}"
        )
    return pl.read_parquet(stream)


def _columns(path: Path, frame: pl.DataFrame, label: str, features: Sequence[str], client: str | None) -> Part:
    """Return the samples of a table, from its columns of labels, features and clients.

    Raises:
        DataError: a column is missing, a feature is not a finite number, or a label or client is empty.
    """
    named = {"label": [label], "client": [client] if client else [], "features": features}
    for key, names in named.items():
        if missing := [name for name in names if name not in frame.columns]:
            raise DataError(
                f"{path}: `data.{key}` names the column {missing[0]!r}, which the table does not have; name one of "
                f"{', '.join(frame.columns)}"
            )
    if not features:
        raise DataError(
            f"{path}: the table has no column of features, only labels (and clients); add columns of features"
        )
    for name in features:
        kind = frame.schema[name]
        if not (kind.is_numeric() or kind == pl.Boolean):
            raise DataError(
                f"{path}: column {name!r} has type {kind}, but features must be numbers; list the numeric columns in "
                "`data.features`"
            )
        column = frame[name].cast(pl.Float64)
        if (bad := np.flatnonzero(~np.isfinite(column.to_numpy()))).size:
            raise DataError(
                f"{path}: column {name!r}, row {bad[0]} (counted from 0): {frame[name][int(bad[0])]} is not a finite "
                "number; give such rows finite values, or remove them"
            )
    for name in (label, client):
        if name and frame[name].null_count():
            row = frame[name].is_null().arg_true()[0]
            raise DataError(
                f"{path}: column {name!r}, row {row} (counted from 0) has no value; give such rows a value, or remove "
                "them"
            )
    return Part(
        where=path, x=frame.select(features).cast(pl.Float64).to_numpy(), labels=_values(frame[label]),
        client=_values(frame[client]) if client else None,
    )  # fmt: skip


def _values(column: pl.Series) -> Array:
    """Return the values of a column: numbers unchanged, and all other values as text."""
    if column.dtype.is_numeric():
        return column.to_numpy()
    return column.cast(pl.String).to_numpy().astype(np.str_)

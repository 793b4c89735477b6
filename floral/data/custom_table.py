"""Custom data: parquet and CSV tables with one row per sample."""

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
    """Read a parquet or CSV file with one row per sample, or a folder with two such files, train.* and test.*.

    Each feature (by default every column but label and client) becomes (v − mean) / std, with mean and std of the
    training samples. A feature that is constant there becomes 0.

    Raises:
        DataError: a file is unreadable, a column is missing or has wrong values, or the split is not possible.
    """
    root = files[0].location
    stems = {path.name.split(".")[0]: path for path in entries_of(root)} if root.is_dir() else {}
    places = split_or_not(root, stems) if stems else [root]
    if root.is_dir() and (places == [root] or len(entries_of(root)) > len(places)):
        raise DataError(
            f"{root}: a folder for a table must have train.* and test.* (parquet or CSV); name the file instead"
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
        raise DataError(f"{path}: the file name must end in .parquet, .csv or .csv.gz; convert or rename the file")
    try:
        return kinds[suffix](io.BytesIO(content(path)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(
            f"{path}: not a {suffix[1:]} file in UTF-8, or truncated ({error}); remedy: write it again"
        ) from None


def _parquet(stream: io.BytesIO) -> pl.DataFrame:
    """Read a parquet table, first in another process, because polars aborts its process on some damaged files.

    Raises:
        OSError: the other process failed; the message is its last line.
    """
    script = "import io, sys, polars; polars.read_parquet(io.BytesIO(sys.stdin.buffer.read()))"
    done = subprocess.run([sys.executable, "-c", script], input=stream.getvalue(), capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"reading it ended with exit code {done.returncode}")
    return pl.read_parquet(stream)


def _columns(path: Path, frame: pl.DataFrame, label: str, features: Sequence[str], client: str | None) -> Part:
    """Return the samples of a table.

    Raises:
        DataError: a column is missing, a feature is not a finite number, or a label or client is empty.
    """
    named = {"label": [label], "client": [client] if client else [], "features": features}
    for key, names in named.items():
        if missing := [name for name in names if name not in frame.columns]:
            raise DataError(
                f"{path}: data.{key}: there is no column {missing[0]!r}; name one of {', '.join(frame.columns)}"
            )
    if not features:
        raise DataError(f"{path}: no feature column besides label and client; add one")
    for name in features:
        kind = frame.schema[name]
        if not (kind.is_numeric() or kind == pl.Boolean):
            raise DataError(
                f"{path}: column {name!r} has {kind}, but features must be numbers; list numeric ones in data.features"
            )
        column = frame[name].cast(pl.Float64)
        if (bad := np.flatnonzero(~np.isfinite(column.to_numpy()))).size:
            raise DataError(
                f"{path}: column {name!r}, row {bad[0]} (of 0, 1, …): {frame[name][int(bad[0])]} is not a finite "
                "number; remedy: fill or remove such rows"
            )
    for name in (label, client):
        if name and frame[name].null_count():
            row = frame[name].is_null().arg_true()[0]
            raise DataError(f"{path}: column {name!r}, row {row} (of 0, 1, …) is empty; fill or remove such rows")
    return Part(
        where=path, x=frame.select(features).cast(pl.Float64).to_numpy(), labels=_values(frame[label]),
        client=_values(frame[client]) if client else None,
    )  # fmt: skip


def _values(column: pl.Series) -> Array:
    """Return numbers unchanged, and all other values as text."""
    if column.dtype.is_numeric():
        return column.to_numpy()
    return column.cast(pl.String).to_numpy().astype(np.str_)

"""Read custom data from parquet or CSV tables with one sample per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from floral.data.custom_cells import Table, is_image, numbers, read_table, refuse_row_numbers, values
from floral.data.custom_parts import SPLITS, Array, Part, entries_of, labelled, split_or_not
from floral.data.images import pixels
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile


def table(
    files: Sequence[RawFile],
    *,
    label: str,
    features: Sequence[str] | None,
    client: str | None,
    test_share: float,
    separator: str | None = None,
    decimal: str | None = None,
    missing: Sequence[str] | None = None,
) -> Labelled:
    """Read a table with one sample per row from a parquet or CSV file.

    `files` may also be a folder with two files, train.* and test.*.

    Each feature becomes (v − mean) / std, with the mean and the standard deviation of the training samples. A feature
    that is constant in training becomes 0. By default, the features are all columns except `label` and `client`. A
    parquet table may have one column of encoded images instead of features, as on the Hugging Face Hub.

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
    tables = [read_table(place, separator, decimal, missing) for place in places]
    features_given, features = features, features or [c for c in tables[0].frame.columns if c not in (label, client)]
    for sheet in tables:
        sheet.check_columns(label=[label], client=[client] if client else [], features=features)
    if not features_given:
        refuse_row_numbers(tables, features)
    tables = [sheet.without_missing([label, *([client] if client else []), *features]) for sheet in tables]
    columns = [(values(sheet, label), values(sheet, client) if client else None) for sheet in tables]
    with_images = any(is_image(sheet.frame.schema[name]) for sheet in tables for name in features)
    inputs = _images(tables, features) if with_images else [_features(sheet, features) for sheet in tables]
    parts = [
        Part(where=sheet.path, x=x, labels=labels, client=clients)
        for sheet, x, (labels, clients) in zip(tables, inputs, columns, strict=True)
    ]
    data = labelled(parts, test_share, scale=255 if with_images else 1)
    return data if with_images else _standardised(data, tables, inputs, features)


def _features(sheet: Table, names: Sequence[str]) -> Array:
    return np.stack([numbers(sheet, name) for name in names], axis=1)


def _standardised(data: Labelled, tables: Sequence[Table], inputs: Sequence[Array], names: Sequence[str]) -> Labelled:
    """Return the data with features of mean 0 and standard deviation 1 in training.

    `inputs` holds the features [N, features] of each table, in the order of its rows.

    Raises:
        DataError: a standardised value is too large for single precision.
    """
    with np.errstate(all="ignore"):
        mean, std = data.train_x.mean(0), data.train_x.std(0)
        constant = data.train_x.max(0) == data.train_x.min(0)  # The computed std is rarely exactly 0.
        mean[constant], std[constant] = data.train_x[0][constant], 1
        for sheet, x in zip(tables, inputs, strict=True):
            if (bad := np.argwhere(~np.isfinite(((x - mean) / std).astype(np.float32)))).size:
                row, column = map(int, bad[0])
                sheet.refuse(
                    names[column],
                    row,
                    "is too far from, or too close to, the other values; scale the column, or remove the row",
                )
        scaled = {f"{side}_x": ((getattr(data, f"{side}_x") - mean) / std).astype(np.float32) for side in SPLITS}
    return replace(data, **scaled)


def _images(tables: Sequence[Table], features: Sequence[str]) -> list[Array]:
    """Decode the images of all tables, uint8 [N, H, W] or [N, H, W, 3] for each table.

    Raises:
        DataError: there are other features beside the images, or an image is missing or cannot be decoded.
    """
    first = tables[0]
    name = next((name for name in features if is_image(first.frame.schema[name])), features[0])
    if beside := [column for column in features if column != name]:
        raise DataError(
            f"{first.path}: column {name!r} has images, but {', '.join(beside[:5])} would be features beside them; set "
            f"`data.features: {json.dumps([name])}` to use the images alone"
        )
    for sheet in tables:
        if not is_image(sheet.frame.schema[name]):
            raise DataError(
                f"{sheet.path}: column {name!r} has type {sheet.frame.schema[name]}, but {first.path} has images "
                "there; give both files the same columns"
            )
    cells = [(sheet, row, cell) for sheet in tables for row, cell in enumerate(_bytes(sheet, name))]
    array = pixels(((sheet.cell(name, row), cell) for sheet, row, cell in cells), len(cells))
    return np.split(array, np.cumsum([sheet.frame.height for sheet in tables])[:-1])


def _bytes(sheet: Table, name: str) -> list[bytes]:
    column = sheet.frame[name]
    encoded = column.struct.field("bytes") if column.dtype == pl.Struct else column
    if encoded.null_count():
        row = int(encoded.is_null().arg_true()[0])
        raise DataError(f"{sheet.cell(name, row)}: the image has no bytes; store the image itself in the table")
    return encoded.to_list()

"""Read custom data from parquet or CSV tables with one sample per row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.data.custom.cells import Table, classes, integers, is_image, names, numbers, read_table
from floral.data.custom.csv import NAMELESS
from floral.data.custom.parts import SPLITS, Array, Part, Place, check_kind, entries_of, labelled, split_or_not
from floral.data.images import pixels
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile
from floral.data.tokens import SHORTEN, TOKENS, token_ids

NAMELESS_COLUMN = re.compile(re.escape(NAMELESS).replace(r"\{\}", r"\d+"))
ROW_NUMBERS = re.compile(r"Unnamed: \d.*|__index_level_\d+__|\.\.\.\d+|row[\W_]?names?", re.I)
"""Names that pandas and R give to the column of the row numbers."""
IDENTIFIER = re.compile(
    r"(?i:#|index|level_\d|(.*[\W_])?(id|idx)|(row|sample|record|case|item)s?[\W_]*(id|idx|index|no|nr|num|number)?)"
    r"|.*[a-z]I[dD]"
)
"""Names of columns that identify the rows, if they hold different integers."""
CHANCE = 1e-5
"""Integers number the rows if their order, or their being all different, is less probable than this by chance."""


def table(files: Sequence[RawFile], **options: Any) -> Labelled:
    """Read a table with one sample per row from a parquet or CSV file.

    `files` may also be a folder with two files, train.* and test.*.

    Each feature becomes (v − mean) / std, with the mean and the standard deviation of the training samples. A feature
    that is constant in training becomes 0. By default, the features are all columns except `label`, `client` and
    `drop`. A column of row numbers is refused as a feature, unless `features` names it. A parquet table may have one
    column of encoded images instead of features, as on the Hugging Face Hub. `resize` gives them one height and width.

    With `text`, the samples are the token ids [N, tokens] of this column. The tokenizer and the configuration of its
    model are the files after the table.

    Raises:
        DataError: a file is unreadable, a column is missing or has wrong values, or the split is not possible.
    """
    return read_tables(table_places(files[0].location), tokenizer=files[1:], **options)


def table_places(root: Path) -> list[Place]:
    """Return the files train.* and test.* in the folder `root`, or `root` itself if it is a file."""
    check_kind(root, "table")
    stems = {path.name.split(".")[0]: path for path in entries_of(root)} if root.is_dir() else {}
    places = split_or_not(root, stems) if stems else [Place(root)]
    if root.is_dir() and (places[0].side is None or len(entries_of(root)) > len(places)):
        raise DataError(
            f"{root}: this folder must contain one file train.* and one file test.* (parquet or CSV), and nothing "
            "else; remove other files, or set `data.path` to a single file"
        )
    return places


def read_tables(
    places: Sequence[Place],
    *,
    label: str,
    features: Sequence[str] | None,
    client: str | None = None,
    drop: Sequence[str] | None = None,
    test_share: float,
    separator: str | None = None,
    decimal: str | None = None,
    missing: Sequence[str] | None = None,
    text: str | None = None,
    tokens: int | None = None,
    resize: Sequence[int] | None = None,
    tokenizer: Sequence[RawFile] = (),
) -> Labelled:
    """Read tables with the same columns. See `table`."""
    tables = [read_table(place.path, separator, decimal, missing) for place in places]
    used = [label, *([client] if client else [])]
    remaining = (name for name in tables[0].frame.columns if name not in (*used, *(drop or ())))
    key, columns = ("text", [text]) if text else ("features", list(features or remaining))
    tables[0].check_columns(drop=drop or (), **{key: columns})
    for sheet in tables:
        sheet.check_columns(label=[label], client=used[1:], **{key: columns})
    if key == "features" and not features:
        _refuse_row_numbers(tables, columns)
    tables = [sheet.without_missing(columns, used) for sheet in tables]
    labels = classes(tables, label)
    of_places = [place.of_client(len(sheet.rows)) for place, sheet in zip(places, tables, strict=True)]
    clients = names(tables, client) if client else of_places
    with_images = any(is_image(sheet.frame.schema[name]) for sheet in tables for name in columns)
    if resize and not with_images:
        raise DataError(f"{tables[0].path}: `data.resize` is for images, but this table has none; remove the key")
    if text:
        inputs = _token_ids(tables, text, tokenizer, tokens)
    else:
        inputs = _images(tables, columns, resize) if with_images else [_features(sheet, columns) for sheet in tables]
    parts = [
        Part(where=place.path, x=x, labels=of_class, client=of_client, domain=place.domain, side=place.side)
        for place, x, of_class, of_client in zip(places, inputs, labels, clients, strict=True)
    ]
    data = labelled(parts, test_share, scale=255 if with_images else 1)
    return data if with_images or text else _standardised(data, tables, inputs, columns)


def _token_ids(
    tables: Sequence[Table], name: str, tokenizer: Sequence[RawFile], tokens: int | None
) -> list[npt.NDArray[np.int32]]:
    """Return the token ids of the texts of all tables, int32 [N, T] for each table.

    T is `tokens`, or TOKENS if it is None. Longer texts are cut. If `tokens` is None, only texts that the model could
    read as a whole are cut.

    Raises:
        DataError: a text is empty or longer than the model allows, or the tokenizer cannot be used.
    """
    cells = [(sheet, row) for sheet in tables for row in range(sheet.frame.height)]
    ids = token_ids(
        [text for sheet in tables for text in _texts(sheet, name)],
        lambda number: cells[number][0].cell(name, cells[number][1]),
        tokenizer[0].location,
        tokenizer[1].location,
        tokens or TOKENS,
        fill=True,
        remedy=f"{SHORTEN}, or set `data.tokens`, which cuts longer texts" if tokens is None else None,
    )
    return np.split(ids, np.cumsum([sheet.frame.height for sheet in tables])[:-1])


def _texts(sheet: Table, name: str) -> list[str]:
    """Return the texts of a column.

    Raises:
        DataError: the column has no texts, or a cell is empty.
    """
    column = sheet.frame[name]
    if column.dtype != pl.String:
        raise DataError(
            f"{sheet.path}: column {name!r} has type {column.dtype}, but `data.text` must name a text column"
        )
    if len(empty := (column.fill_null("").str.strip_chars() == "").arg_true()):
        sheet.refuse(name, int(empty[0]), 'is no text; write a text, remove the row, or set `data.missing: [""]`')
    return column.to_list()


def _refuse_row_numbers(tables: Sequence[Table], columns: Sequence[str]) -> None:
    """Raise DataError if columns hold the numbers of the rows. In a sorted table, they would give the classes away."""
    reasons = {name: why for name in columns if (why := _why_row_numbers(tables, name))}
    if reasons:
        name, why = next(iter(reasons.items()))
        raise DataError(
            f"{tables[0].path}: column {name!r} {why}, so it seems to be no feature; set `data.drop: "
            f"{json.dumps(list(reasons), ensure_ascii=False)}` to leave it out, or list the columns to use in "
            "`data.features`"
        )


def _why_row_numbers(tables: Sequence[Table], name: str) -> str | None:
    """Return why a column seems to number the rows, or None."""
    if NAMELESS_COLUMN.fullmatch(name):
        return "has no name, as row numbers in files of pandas and R"
    if ROW_NUMBERS.fullmatch(name):
        return "has a name that pandas or R give to row numbers"
    if any(name in sheet.index for sheet in tables):
        return "was the index of a pandas table"
    parts = [integers(sheet.frame[name], sheet.decimal) for sheet in tables]
    if IDENTIFIER.fullmatch(name) and all(map(_all_different, parts)):
        return "has the name of an identifier, and different integers"
    if any(map(_is_numbering, (*parts, np.concatenate(parts)))):
        return "numbers the rows: its integers rise, fall or are all different"
    return None


def _all_different(values: Array) -> bool:
    return 0 < len(values) == pl.Series(values).n_unique()


def _is_numbering(values: Array) -> bool:
    """Return whether integers [N] are all different, or rise or fall from row to row, and hardly so by chance.

    By chance, N different integers from a range of length R have the probability R (R − 1) … (R − N + 1) / R^N, and
    they rise or fall with probability 2 / N!.
    """
    if not _all_different(values):
        return False
    count, length = len(values), int(values.max()) - int(values.min()) + 1
    log_chance = np.log1p(-np.arange(count) / length).sum()
    rises = values[1:] > values[:-1]
    if rises.all() or not rises.any():
        log_chance = min(log_chance, math.log(2) - math.lgamma(count + 1))
    return bool(log_chance < math.log(CHANCE))


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


def _images(tables: Sequence[Table], features: Sequence[str], resize: Sequence[int] | None) -> list[Array]:
    """Decode the images of all tables, uint8 [N, H, W] or [N, H, W, 3] for each table, and perhaps resize them.

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
    array = pixels(((sheet.cell(name, row), cell) for sheet, row, cell in cells), len(cells), resize)
    return np.split(array, np.cumsum([sheet.frame.height for sheet in tables])[:-1])


def _bytes(sheet: Table, name: str) -> list[bytes]:
    column = sheet.frame[name]
    encoded = column.struct.field("bytes") if column.dtype == pl.Struct else column
    if encoded.null_count():
        row = int(encoded.is_null().arg_true()[0])
        raise DataError(f"{sheet.cell(name, row)}: the image has no bytes; store the image itself in the table")
    return encoded.to_list()

"""Reader of texts with a class, in parquet tables as on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.data.readers import REPLACE, Labelled
from floral.data.sources import DataError, RawFile
from floral.data.text import parquet_table
from floral.data.tokens import token_ids

LABEL = "label"
"""Name of the column with the classes."""


def labelled_texts(files: Sequence[RawFile], *, text: str, names: Sequence[str], tokens: int) -> Labelled:
    """Read a training and a test table of texts with a class, and turn the texts into token ids.

    `text` is the name of the column with the texts. The column `label` has the classes 0, 1, …, whose names are
    `names`. The last two files are tokenizer.json and config.json of a pretrained model.

    x [N, T] holds the token ids. T is the length of the longest text, but at most `tokens`; see `token_ids`.

    Raises:
        DataError: a file is not parquet, has other columns or a missing value, a label is no class, a text is empty or
            longer than the model allows, or the tokenizer does not fit the model.
        ConfigError: config.json has no padding id.
    """
    *sides, tokenizer, config = files
    texts, labels = zip(*(_texts_and_labels(raw, text, len(names)) for raw in sides), strict=True)
    train = len(labels[0])

    def place_of(number: int) -> str:
        raw, row = (sides[0], number) if number < train else (sides[1], number - train)
        return f"{raw.location}: row {row} (counted from 0)"

    ids = token_ids(list(chain(*texts)), place_of, tokenizer.location, config.location, tokens)
    return Labelled(
        train_x=ids[:train], train_y=labels[0], test_x=ids[train:], test_y=labels[1], classes=len(names), scale=1,
        names=tuple(names),
    )  # fmt: skip


READERS: dict[str, Callable[..., Labelled]] = {"labelled_texts": labelled_texts}


def _texts_and_labels(raw: RawFile, text: str, classes: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    table = parquet_table(raw, {text: pl.String, LABEL: None})
    labels = table[LABEL]
    if not labels.dtype.is_integer():
        raise DataError(f"{raw.location}: the column {LABEL} has type {labels.dtype}; save the classes 0, 1, … in it")
    if not len(labels):
        raise DataError(f"{raw.location}: this table has no rows; {REPLACE}")
    if len(wrong := ((labels < 0) | (labels >= classes)).arg_true()):
        raise DataError(
            f"{raw.location}: row {wrong[0]} (counted from 0): the label {labels[wrong[0]]} is no class from 0 to "
            f"{classes - 1}; correct it, or remove the row"
        )
    return table[text].to_list(), labels.cast(pl.Int64).to_numpy()

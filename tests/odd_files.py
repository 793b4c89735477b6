"""Read custom data as a task declares them, for tests with odd files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from floral.config.schema.data import CustomData, DataFile
from floral.data import custom
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile

RANDOM = np.random.default_rng(0)
LABEL = {"label": "species"}
PLAIN = pd.DataFrame({"a": RANDOM.normal(size=30).round(3), "b": RANDOM.normal(size=30).round(3),
                      "species": np.repeat(["ash", "elm", "oak"], 10)})  # fmt: skip
"""A table of three classes."""


def read(kind: Any, path: Path, **options: Any) -> Labelled:
    file = RawFile(file=DataFile(path=str(path)), location=path, sha256="", verified=True)
    return custom.READERS[kind]([file], **CustomData(kind=kind, path=str(path), **options).options)


def refused(kind: str, path: Path, message: str, **options: Any) -> None:
    """Check that the reader refuses the data, and that the message names a file and no option of a parser."""
    with pytest.raises(DataError, match=rf"(?s)^{path.parent}.*{message}") as caught:
        read(kind, path, **options)
    text = str(caught.value)
    assert "truncate_ragged_lines" not in text and "infer_schema" not in text, text
    assert text.isprintable(), text


def in_order(found: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """All samples x and labels y, training samples first."""
    return np.concatenate([found.train_x, found.test_x]), np.concatenate([found.train_y, found.test_y])


def csv(frame: pd.DataFrame, **how: Any) -> str:
    return frame.to_csv(**{"index": False, **how})


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def written(folder: Path, content: str | bytes | pl.DataFrame) -> Path:
    """Write a CSV or parquet file."""
    if isinstance(content, str):
        content = content.encode()
    kind = "csv" if isinstance(content, bytes) and content[:4] != b"PAR1" else "parquet"
    path = folder / f"odd.{kind}"
    if isinstance(content, pl.DataFrame):
        content.write_parquet(path)
    else:
        path.write_bytes(content)
    return path

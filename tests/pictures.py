"""Small random images, and parquet files of encoded images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


def write(
    path: Path, images: np.ndarray, labels: np.ndarray | list[int], column: str = "label", kind: str = "PNG"
) -> Path:
    """Write a parquet file in the layout of the Hugging Face Hub."""
    img = [{"bytes": encoded(image, kind), "path": f"{row}.png"} for row, image in enumerate(images)]
    schema = {"img": pl.Struct({"bytes": pl.Binary, "path": pl.String}), column: pl.Int64}
    pl.DataFrame({"img": img, column: labels}, schema=schema).write_parquet(path)
    return path


def write_writers(path: Path, images: np.ndarray, labels: list[int], writers: list[str]) -> Path:
    """Write a parquet file in the layout of flwrlabs/femnist."""
    image = [{"bytes": encoded(picture), "path": None} for picture in images]
    schema = {
        "image": pl.Struct({"bytes": pl.Binary, "path": pl.String}), "writer_id": pl.String, "hsf_id": pl.Int64,
        "character": pl.Int64,
    }  # fmt: skip
    columns = {"image": image, "writer_id": writers, "hsf_id": [0] * len(writers), "character": labels}
    pl.DataFrame(columns, schema=schema).write_parquet(path)
    return path


def made(seed: int, count: int, shape: tuple[int, ...] = (6, 6, 3)) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 [count, *shape], and their labels [count] of four classes."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *shape)).astype(np.uint8), random.integers(0, 4, count)

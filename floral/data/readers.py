"""Raw files → the canonical arrays of a data set; data.lock names one of these functions as `reader`."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from floral import seeds
from floral.data.sources import DataError, RawFile, content


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A classification data set: x uint8 [N, H, W] or [N, H, W, 3], y int64 [N]; x / scale lies in [0, 1].

    train_client, test_client int32 [N]: the natural client (a writer, a role, a user: 0, 1, …) of each row, where the
    data have them, and None where not.
    """

    train_x: npt.NDArray[np.uint8]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.uint8]
    test_y: npt.NDArray[np.int64]
    classes: int
    scale: int
    train_client: npt.NDArray[np.int32] | None = None
    test_client: npt.NDArray[np.int32] | None = None

    @property
    def natural_clients(self) -> int | None:
        """How many natural clients the data have; None: they have none."""
        sides = [side for side in (self.train_client, self.test_client) if side is not None and len(side)]
        return max(int(side.max()) for side in sides) + 1 if sides else None


def idx(files: Sequence[RawFile]) -> Labelled:
    """The IDX files of MNIST and its kin, in the order train images, train labels, test images, test labels.

    Raises:
        DataError: a file is no IDX file of bytes, is truncated, or images and labels differ in number.
    """
    train_x, train_y, test_x, test_y = (_idx_array(raw) for raw in files)
    for images, labels, pair in ((train_x, train_y, files[:2]), (test_x, test_y, files[2:])):
        if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
            names = " and ".join(str(raw.location) for raw in pair)
            raise DataError(
                f"{names}: images {list(images.shape)} and labels {list(labels.shape)} do not belong together"
            )
    return Labelled(
        train_x=train_x, train_y=train_y.astype(np.int64), test_x=test_x, test_y=test_y.astype(np.int64),
        classes=int(max(train_y.max(), test_y.max())) + 1, scale=255,
    )  # fmt: skip


def digits_csv(files: Sequence[RawFile]) -> Labelled:
    """The 1797 digits of 8×8 pixels from 0 to 16 that scikit-learn ships: rows of 64 pixels and a label.

    The upstream file has no split: a fixed shuffle cuts it into 1437 training and 360 test rows.
    """
    table = np.loadtxt(io.BytesIO(content(files[0].location)), delimiter=",")
    order = seeds.permutation(0, "digits split", size=len(table))
    images, labels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
    train, test = order[:1437], order[1437:]
    return Labelled(
        train_x=images[train], train_y=labels[train], test_x=images[test], test_y=labels[test], classes=10, scale=16
    )


def image_parquet(files: Sequence[RawFile]) -> Labelled:
    """Two parquet files, train and test, in the layout of the Hugging Face Hub: `img` = struct(bytes, path) with an
    encoded image each, and integer labels in `label` or `fine_label` (CIFAR-100, whose coarse labels stay unread).

    Raises:
        DataError: a file is truncated, lacks a column, or has an image that cannot be decoded or is of another shape.
    """
    (train_x, train_y), (test_x, test_y) = (_parquet_images(raw) for raw in files)
    if train_x.shape[1:] != test_x.shape[1:]:
        names = " and ".join(str(raw.location) for raw in files)
        raise DataError(f"{names}: images {list(train_x.shape[1:])} and {list(test_x.shape[1:])} do not fit together")
    return Labelled(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=int(max(train_y.max(), test_y.max())) + 1, scale=255,
    )  # fmt: skip


READERS: dict[str, Callable[[Sequence[RawFile]], Labelled]] = {
    "idx": idx,
    "digits_csv": digits_csv,
    "image_parquet": image_parquet,
}


def _idx_array(raw: RawFile) -> npt.NDArray[np.uint8]:
    """IDX: two zero bytes, a type (8: unsigned byte), the number of axes, their sizes as big-endian int32, values."""
    data = content(raw.location)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{raw.location}: not an IDX file of unsigned bytes; it begins with {data[:4].hex(' ') or 'nothing'}"
        )
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4]) for at in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise DataError(
            f"{raw.location}: truncated: {len(data):,} bytes, but its header announces {start + math.prod(shape):,}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _parquet_images(raw: RawFile) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images uint8 [N, H, W] (grey) or [N, H, W, 3], and labels int64 [N], in the file's row order."""
    remedy = "remedy: replace it by a whole copy"
    try:
        table = pl.read_parquet(io.BytesIO(content(raw.location)))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{raw.location}: not a parquet file, or truncated ({error}); {remedy}") from None
    label = next((name for name in ("label", "fine_label") if name in table.columns), None)
    encoded = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    if label is None or table.schema.get("img") != encoded or not table.schema[label].is_integer():
        raise DataError(
            f"{raw.location}: expected a column img of struct(bytes, path) and one of label or fine_label, "
            f"found {dict(table.schema)}"
        )
    classes = table[label].cast(pl.Int64).to_numpy()
    if not len(classes) or table[label].null_count() or classes.min() < 0:
        raise DataError(f"{raw.location}: no rows, or one without a class (0, 1, …) in {label}; {remedy}")
    images: list[npt.NDArray[np.uint8]] = []
    for row, image_file in enumerate(table["img"].struct.field("bytes")):
        try:
            with Image.open(io.BytesIO(image_file or b"")) as image:
                images.append(np.asarray(image))
        except (OSError, SyntaxError) as error:  # Pillow's words for a broken image
            raise DataError(f"{raw.location}: row {row}: the image cannot be decoded ({error}); {remedy}") from None
        shape, first = images[-1].shape, images[0].shape
        if shape != first or images[-1].dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (3,)):
            raise DataError(
                f"{raw.location}: row {row}: an image of shape {list(shape)} ({images[-1].dtype}) where grey or RGB "
                f"bytes of the first row's shape {list(first)} are expected"
            )
    return np.stack(images), classes

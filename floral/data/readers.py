"""Readers that turn raw files into the arrays of a data set.

Each data set in data.lock names its reader in the key `reader`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.core import seeds
from floral.data.images import decoded
from floral.data.sources import DataError, RawFile, content

TEST_SHARE = 0.2
"""Share of test samples where a data set has no split."""
ENCODED = pl.Struct({"bytes": pl.Binary, "path": pl.String})
"""Type of an image column in parquet files of the Hugging Face Hub."""
ROWS_PER_SLICE = 10_000
"""Number of rows of a parquet file in memory at a time."""
REPLACE = "remedy: replace it by a complete copy"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A classification data set of images or text, split into training and test samples.

    Images x are uint8 [N, H, W] or [N, H, W, 3]. Divided by `scale`, their values are in [0, 1]. Labels y are int64
    [N]. Custom data may also have x float32 [N, ...] of any range, with scale 1. `names` holds the names of the
    classes.

    Text (`floral.data.text`) has token ids x, uint8 or int32 [N, T], with scale 1. The labels y, int64 [N, T], hold for
    each position the token after it. `classes` is the size of the vocabulary.

    train_client and test_client, int32 [N], hold the number of each sample's natural client (a writer, role or user).
    The number is -1 for a sample without one. They are None if the data have no natural clients. `client_names` holds
    the names of the natural clients in the data, in the order of these numbers.

    train_domain and test_domain, int32 [N], hold the number of each sample's domain (a genre or a source), and
    `domains` the names of the domains. They are None if the data have no domains.

    Samples with a rating have labels y float32 [N], and `classes` is None. The key `thresholds` of a task turns ratings
    into classes.
    """

    train_x: npt.NDArray[np.uint8 | np.int32 | np.float32]
    train_y: npt.NDArray[np.int64 | np.float32]
    test_x: npt.NDArray[np.uint8 | np.int32 | np.float32]
    test_y: npt.NDArray[np.int64 | np.float32]
    classes: int | None
    scale: int
    train_client: npt.NDArray[np.int32] | None = None
    test_client: npt.NDArray[np.int32] | None = None
    names: tuple[str, ...] | None = None
    client_names: tuple[str, ...] | None = None
    train_domain: npt.NDArray[np.int32] | None = None
    test_domain: npt.NDArray[np.int32] | None = None
    domains: tuple[str, ...] | None = None

    @property
    def natural_clients(self) -> int | None:
        """The number of natural clients, for example writers, or None if the data have none."""
        sides = [side for side in (self.train_client, self.test_client) if side is not None and len(side)]
        return max(int(side.max()) for side in sides) + 1 if sides else None


def idx(files: Sequence[RawFile]) -> Labelled:
    """Read four IDX files, such as those of MNIST: training images, training labels, test images and test labels.

    Raises:
        DataError: a file is not an IDX file of bytes, is truncated, or images and labels differ in number.
    """
    train_x, train_y, test_x, test_y = (_idx_array(raw) for raw in files)
    for images, labels, pair in ((train_x, train_y, files[:2]), (test_x, test_y, files[2:])):
        if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
            names = " and ".join(str(raw.location) for raw in pair)
            raise DataError(
                f"{names}: images of shape {list(images.shape)} and labels of shape {list(labels.shape)} do not match; "
                "remedy: replace both files by complete copies"
            )
        if not len(images):
            raise DataError(f"{pair[0].location}: this file has no image; {REPLACE}")
    return Labelled(
        train_x=train_x, train_y=train_y.astype(np.int64), test_x=test_x, test_y=test_y.astype(np.int64),
        classes=int(max(train_y.max(), test_y.max())) + 1, scale=255,
    )  # fmt: skip


def digits_csv(files: Sequence[RawFile]) -> Labelled:
    """Read the 1797 handwritten digits of scikit-learn: 8×8 pixels with values from 0 to 16, and a label.

    The original file has no split. A fixed shuffle splits it into 1437 training and 360 test samples.
    """
    table = np.loadtxt(io.BytesIO(content(files[0].location)), delimiter=",")
    order = seeds.permutation(0, "digits split", size=len(table))
    images, labels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1].astype(np.int64)
    train, test = order[:1437], order[1437:]
    return Labelled(
        train_x=images[train], train_y=labels[train], test_x=images[test], test_y=labels[test], classes=10, scale=16
    )


def image_parquet(files: Sequence[RawFile]) -> Labelled:
    """Read a training and a test file of images in parquet format, such as those of CIFAR-10 on the Hugging Face Hub.

    The column `img` or `image`, a struct of bytes and path, holds encoded images. The column `label` or `fine_label`
    holds integer classes. The coarse labels of CIFAR-100 are not read.

    Raises:
        DataError: a file is truncated, lacks a column, or has an image that cannot be decoded or differs in shape from
        the first image.
    """
    (train_x, train_y), (test_x, test_y) = (_parquet_images(raw) for raw in files)
    if train_x.shape[1:] != test_x.shape[1:]:
        names = " and ".join(str(raw.location) for raw in files)
        raise DataError(
            f"{names}: training images have shape {list(train_x.shape[1:])}, but test images {list(test_x.shape[1:])}; "
            "remedy: replace both files by complete copies"
        )
    return Labelled(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y,
        classes=int(max(train_y.max(), test_y.max())) + 1, scale=255,
    )  # fmt: skip


def writer_parquet(files: Sequence[RawFile]) -> Labelled:
    """Read parquet files of images by many writers, in the layout of flwrlabs/femnist. Each writer is a natural client.

    The column `image`, a struct of bytes and path, holds encoded images. `writer_id` holds their writers and
    `character` their classes. Writers are numbered in the order of their names.

    The original table has no split. `select_test` selects a fifth of the images of each writer for the test.

    Raises:
        DataError: a file is truncated, lacks a column or has an image that cannot be decoded, or no writer has two
        images.
    """
    tables, labels, writers = [], [], []
    for raw in files:
        table = _parquet(raw)
        schema = table.collect_schema()
        columns = schema.get("image"), schema.get("writer_id"), schema.get("character", pl.String()).is_integer()
        if columns != (ENCODED, pl.String, True):
            raise DataError(
                f"{raw.location}: expected the columns image (struct of bytes and path), writer_id (strings) and "
                f"character (integers), found {dict(schema)}; {REPLACE}"
            )
        rows = _collected(raw, table.select("writer_id", "character"))
        if rows["writer_id"].null_count():
            raise DataError(f"{raw.location}: a row has no writer_id; {REPLACE}")
        tables.append((raw, table))
        labels.append(_classes(raw, rows["character"]))
        writers.append(rows["writer_id"].to_numpy())
    y = np.concatenate(labels)
    names, client = np.unique(np.concatenate(writers), return_inverse=True)
    client = client.astype(np.int32)
    test = select_test(client, TEST_SHARE, "writers split")
    if not test.any():
        raise DataError(f"{files[0].location}: no writer has two images, so there are no test samples; {REPLACE}")
    trained = len(y) - int(test.sum())
    images = _decoded(tables, "image", np.where(test, trained + np.cumsum(test), np.cumsum(~test)) - 1)
    return Labelled(
        train_x=images[:trained], train_y=y[~test], test_x=images[trained:], test_y=y[test],
        train_client=client[~test], test_client=client[test], client_names=tuple(map(str, names)),
        classes=int(y.max()) + 1, scale=255,
    )  # fmt: skip


def select_test(client: npt.NDArray[np.integer], share: float, purpose: str) -> npt.NDArray[np.bool_]:
    """Select the test samples of a data set without a split, and return a mask [N], which is True for them.

    The choice is the same for every seed of a run. `client` [N] holds the client of each sample. Of a client's n
    samples, round(share·n) random ones are test samples: at least one, never all. If a client has only one sample, it
    is a training sample.
    """
    rank, size = seeds.ranks(0, purpose, np.arange(len(client)), client)
    return rank < np.minimum(np.maximum(1, np.rint(share * size)), size - 1)


READERS: dict[str, Callable[[Sequence[RawFile]], Labelled]] = {
    "idx": idx,
    "digits_csv": digits_csv,
    "image_parquet": image_parquet,
    "writer_parquet": writer_parquet,
}


def _idx_array(raw: RawFile) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    The file consists of two zero bytes, the type (8: unsigned byte), the number of axes, the sizes of the axes and the
    values. Sizes are big-endian int32.
    """
    data = content(raw.location)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{raw.location}: this is not an IDX file of unsigned bytes, because it begins with "
            f"{data[:4].hex(' ') or 'nothing'}; {REPLACE}"
        )
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4]) for at in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise DataError(
            f"{raw.location}: this file has {len(data):,} bytes, but its header announces "
            f"{start + math.prod(shape):,}; {REPLACE}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _parquet_images(raw: RawFile) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read images uint8 [N, H, W] (grey) or [N, H, W, 3] and their labels int64 [N], in the order of the file."""
    table = _parquet(raw)
    schema = table.collect_schema()
    label = next((name for name in ("label", "fine_label") if name in schema), None)
    image = next((name for name in ("img", "image") if schema.get(name) == ENCODED), None)
    if label is None or image is None or not schema[label].is_integer():
        raise DataError(
            f"{raw.location}: expected a column img or image (struct of bytes and path) and a column label or "
            f"fine_label (integers), found {dict(schema)}; {REPLACE}"
        )
    labels = _classes(raw, _collected(raw, table.select(label))[label])
    return _decoded([(raw, table)], image, np.arange(len(labels))), labels


def _parquet(raw: RawFile) -> pl.LazyFrame:
    """Open a parquet file. Only its schema is read."""
    try:
        table = pl.scan_parquet(io.BytesIO(content(raw.location)))
        table.collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _broken(raw, error) from None
    return table


def _collected(raw: RawFile, table: pl.LazyFrame) -> pl.DataFrame:
    try:
        return table.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _broken(raw, error) from None


def _broken(raw: RawFile, error: Exception) -> DataError:
    return DataError(f"{raw.location}: this is not a parquet file, or it is truncated ({error}); {REPLACE}")


def _classes(raw: RawFile, labels: pl.Series) -> npt.NDArray[np.int64]:
    classes = labels.cast(pl.Int64).to_numpy()
    if not len(classes) or labels.null_count() or classes.min() < 0:
        raise DataError(
            f"{raw.location}: column {labels.name} is empty, or has a value that is not a class 0, 1, …; {REPLACE}"
        )
    return classes


def _decoded(
    tables: Iterable[tuple[RawFile, pl.LazyFrame]], column: str, place: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint8]:
    """Decode the images of several files to one array uint8 [N, H, W] (grey) or [N, H, W, 3].

    All images must have the shape of the first one. Image number i, counted through all files, becomes entry place[i]
    of the array; `place` is [N]. Only one slice of encoded images is in memory at a time.
    """
    array, done = np.empty(0, np.uint8), 0
    for raw, table in tables:
        for row, encoded in enumerate(_encoded(raw, table, column)):
            pixels = np.asarray(decoded(f"{raw.location}: row {row}", encoded or b""))
            shape, first = pixels.shape, array.shape[1:] if done else pixels.shape
            if shape != first:
                raise DataError(
                    f"{raw.location}: row {row}: the image has shape {list(shape)}, but all images must have the first "
                    f"image's shape {list(first)}; {REPLACE}"
                )
            if not done:
                array = np.empty((len(place), *shape), np.uint8)
            array[place[done]] = pixels
            done += 1
    return array


def _encoded(raw: RawFile, table: pl.LazyFrame, column: str) -> Iterator[bytes | None]:
    cells, start = table.select(pl.col(column).struct.field("bytes")), 0
    while len(chunk := _collected(raw, cells.slice(start, ROWS_PER_SLICE)).to_series()):
        yield from chunk
        start += ROWS_PER_SLICE

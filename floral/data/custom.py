"""Your own data → the canonical arrays: images by class folder, tables, NumPy arrays (`floral.schema.CustomData`).

Whatever is wrong with them is a DataError that names the file, the row or column, and what to do.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from floral.data.readers import Labelled, apart
from floral.data.sources import DataError, RawFile, content
from floral.io.files import visible

Array = npt.NDArray[Any]

SPLITS = ("train", "test")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
"""Pillow's names of images with at most 8 bits a channel: conversion to RGB would cut others off."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows as they were found: x [N, ...], labels [N] (integers or words), and whose each is, client [N]."""

    where: Path
    x: Array
    labels: Array
    client: Array | None = None


def folder(files: Sequence[RawFile], *, test_share: float) -> Labelled:
    """Images by class: <path>/<class>/<image>, or <path>/train/<class>/<image> and <path>/test/<class>/<image>.

    Classes are numbered in the order of their names. Images have one size; they are grey [N, H, W] where all are grey,
    else [N, H, W, 3], palettes and transparency converted to RGB.

    Raises:
        DataError: see the module.
    """
    root = files[0].location
    places = _split_or_not(root, {path.name: path for path in _entries(root)})
    found = [(place, _image_files(place)) for place in places]
    heads = [head for _, files in found for head in map(_head, files)]
    if odd := next((head for head in heads if head[1] != heads[0][1]), None):
        raise DataError(
            f"{odd[0]}: an image of {odd[1][0]}×{odd[1][1]} pixels where {heads[0][0]} has "
            f"{heads[0][1][0]}×{heads[0][1][1]}; remedy: bring all images to one size"
        )
    if deep := next((head for head in heads if head[2] not in MODES), None):
        raise DataError(f"{deep[0]}: an image of mode {deep[2]}; remedy: save it with 8 bits a channel")
    mode = "L" if all(head[2] in ("1", "L") for head in heads) else "RGB"
    parts = [
        Part(where=place, x=_pixels(files, mode), labels=np.array([path.parent.name for path in files]))
        for place, files in found
    ]
    return _labelled(parts, test_share, scale=255)


def table(
    files: Sequence[RawFile], *, label: str, features: Sequence[str] | None, client: str | None, test_share: float
) -> Labelled:
    """A parquet or CSV file with one row per sample, or a folder with train.* and test.* of that kind.

    Each column of `features` (all but label and client by default) becomes (v − mean) / std over the training rows; one
    that is constant there becomes 0.

    Raises:
        DataError: see the module.
    """
    root = files[0].location
    stems = {path.name.split(".")[0]: path for path in _entries(root)} if root.is_dir() else {}
    places = _split_or_not(root, stems) if stems else [root]
    if root.is_dir() and (places == [root] or len(_entries(root)) > len(places)):
        raise DataError(f"{root}: a folder of a table holds train.* and test.* (parquet or CSV); name the file instead")
    frames = [_frame(place) for place in places]
    features = features or [name for name in frames[0].columns if name not in (label, client)]
    parts = [_columns(*found, label, features, client) for found in zip(places, frames, strict=True)]
    made = _labelled(parts, test_share, scale=1)
    mean, std = made.train_x.mean(0), made.train_x.std(0)
    constant = made.train_x.max(0) == made.train_x.min(0)  # whose std is seldom 0 in floating point
    mean[constant], std[constant] = made.train_x[0][constant], 1
    scaled = {f"{side}_x": ((getattr(made, f"{side}_x") - mean) / std).astype(np.float32) for side in SPLITS}
    return replace(made, **scaled)


def arrays(files: Sequence[RawFile], *, test_share: float) -> Labelled:
    """NumPy arrays: x [N, ...] and y [N], or train_x, train_y, test_x and test_y; client [N], or train_client and
    test_client, say whose each row is. In an .npz file, or a folder of .npy files of these names.

    x of bytes (images) is divided by 255 in training; floating-point numbers are taken as they are.

    Raises:
        DataError: see the module.
    """
    root = files[0].location
    found = _numpy(root)
    both = [f"{side}_{part}" for side in SPLITS for part in "xy"]
    wanted, clients = (both, [f"{side}_client" for side in SPLITS]) if "train_x" in found else (["x", "y"], ["client"])
    has_clients = any(name in found for name in clients)
    wanted = [*wanted, *(clients if has_clients else [])]
    if set(found) != set(wanted):
        raise DataError(
            f"{root}: found the arrays {', '.join(sorted(found)) or 'none'}, expected {', '.join(wanted)}; remedy: "
            "save x and y (and client), or train_x, train_y, test_x and test_y (and train_client and test_client)"
        )
    sides = [f"{side}_" for side in SPLITS] if "train_x" in found else [""]
    parts = [
        Part(
            where=root, x=_rows(root, f"{side}x", found[f"{side}x"]), labels=found[f"{side}y"],
            client=found[f"{side}client"] if has_clients else None,
        )
        for side in sides
    ]  # fmt: skip
    return _labelled(parts, test_share, scale=255 if parts[0].x.dtype == np.uint8 else 1)


READERS: dict[str, Callable[..., Labelled]] = {"folder": folder, "table": table, "arrays": arrays}


# ------------------------------------------------------------------------------------ what all of them need


def _labelled(parts: Sequence[Part], test_share: float, scale: int) -> Labelled:
    """One part, of which `apart` sets test rows of every client aside, or of every class where there are no clients;
    or two parts, training and test. Every class has a training row: where the test would have all rows of a class, the
    first of them is trained on.
    """
    _check(parts)
    y, names = _classes(parts)
    client = None
    if clients := [part.client for part in parts if part.client is not None]:
        client = np.unique(np.concatenate(clients), return_inverse=True)[1].astype(np.int32)
    if len(parts) == 1:
        test = apart(y if client is None else client, test_share, "own data split")
        lost = np.setdiff1d(y[test], y[~test])
        test[np.unique(y, return_index=True)[1][lost]] = False
        if not test.any():
            whose = "class" if client is None else "client"
            raise DataError(f"{parts[0].where}: no {whose} has two rows, so that none is left for the test; add rows")
        train_x, test_x = parts[0].x[~test], parts[0].x[test]
    else:
        test = np.arange(len(y)) >= len(parts[0].x)
        train_x, test_x = parts[0].x, parts[1].x
        if (only := np.setdiff1d(y[test], y[~test])).size:
            name = repr(names[only[0]]) if names else only[0]
            raise DataError(f"{parts[1].where}: class {name} has test rows, but no training row; add some")
    whose = {} if client is None else {"train_client": client[~test], "test_client": client[test]}
    return Labelled(
        train_x=train_x, train_y=y[~test], test_x=test_x, test_y=y[test], classes=int(y.max()) + 1, scale=scale,
        names=names, **whose,
    )  # fmt: skip


def _check(parts: Sequence[Part]) -> None:
    for part in parts:
        if not len(part.x):
            raise DataError(f"{part.where}: there is no row in it; add some, or remove it")
        for name, column in (("labels (y)", part.labels), ("client", part.client)):
            if column is not None and column.shape != part.x.shape[:1]:
                raise DataError(
                    f"{part.where}: {name} of shape {list(column.shape)} for {len(part.x)} rows; give one for each row"
                )
        if part.x.shape[1:] != parts[0].x.shape[1:] or part.x.dtype != parts[0].x.dtype:
            raise DataError(
                f"{part.where}: test rows of shape {list(part.x.shape[1:])} ({part.x.dtype}) beside training rows of "
                f"{list(parts[0].x.shape[1:])} ({parts[0].x.dtype}); make them alike"
            )


def _classes(parts: Sequence[Part]) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Labels [N] of all parts as 0, 1, …, and the words that they stand for, if they are words, in sorted order."""
    where, labels = parts[0].where, np.concatenate([part.labels for part in parts])
    if labels.dtype.kind in "UST":
        names, y = np.unique(labels, return_inverse=True)
        return y.astype(np.int64), tuple(map(str, names))
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: the labels are of type {labels.dtype}; write classes as integers 0, 1, …, or as words"
        )
    known = np.unique(labels)
    if known[0] < 0 or known[-1] != len(known) - 1:
        missing = f"{known[0]}" if known[0] < 0 else f"no {np.flatnonzero(known != np.arange(len(known)))[0]}"
        raise DataError(
            f"{where}: integer labels are 0, 1, … without a gap, but these run from {known[0]} to {known[-1]} with "
            f"{missing}; number the classes anew, or write them as words, which are numbered in their order"
        )
    return labels.astype(np.int64), None


def _split_or_not(root: Path, entries: Mapping[str, Path]) -> list[Path]:
    """Training and test part, if `root` has these, else `root` itself."""
    if not set(SPLITS) & entries.keys():
        return [root]
    if set(entries) != set(SPLITS):
        odd = sorted(set(entries) ^ set(SPLITS))[0]
        raise DataError(f"{root}: beside train or test, both and nothing else are expected; remedy: see to {odd!r}")
    return [entries[side] for side in SPLITS]


def _entries(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder; name the folder that holds one folder of images per class")
    return sorted(path for path in root.iterdir() if not path.name.startswith("."))


# ------------------------------------------------------------------------------------------------- images


def _image_files(root: Path) -> list[Path]:
    """The files of every class, class by class."""
    found: list[Path] = []
    for entry in _entries(root):
        if not entry.is_dir():
            raise DataError(f"{entry}: a file beside the folders of the classes; put it into one, or remove it")
        of_class = visible(entry)
        if not of_class or any(path.parent != entry for path in of_class):
            raise DataError(f"{entry}: the folder of a class holds images and nothing else; fill or remove it")
        found += of_class
    if not found:
        raise DataError(f"{root}: no folder of a class in it; expected <class>/<image>")
    return found


def _head(path: Path) -> tuple[Path, tuple[int, int], str]:
    """An image's file, width and height, and mode, without decoding it."""
    try:
        with Image.open(path) as image:
            return path, image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _undecodable(path, error) from None


def _pixels(files: Sequence[Path], mode: str) -> npt.NDArray[np.uint8]:
    made = np.empty(0, np.uint8)
    for row, path in enumerate(files):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise _undecodable(path, error) from None
        if not row:
            made = np.empty((len(files), *pixels.shape), np.uint8)
        made[row] = pixels
    return made


def _undecodable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: the image cannot be decoded ({error}); remedy: replace or remove it")


# ------------------------------------------------------------------------------------------------- tables


def _frame(path: Path) -> pl.DataFrame:
    kinds = {".parquet": _parquet, ".csv": lambda data: pl.read_csv(data, infer_schema_length=None)}
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in kinds:
        raise DataError(f"{path}: expected a file that ends in .parquet or .csv (or .csv.gz)")
    try:
        return kinds[suffix](io.BytesIO(content(path)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(
            f"{path}: not a {suffix[1:]} file in UTF-8, or truncated ({error}); remedy: write it again"
        ) from None


def _parquet(stream: io.BytesIO) -> pl.DataFrame:
    """The table of a parquet file, read by another process first: on some damaged files polars ends its process.

    Raises:
        OSError: that process failed; its last words.
    """
    read = "import io, sys, polars; polars.read_parquet(io.BytesIO(sys.stdin.buffer.read()))"
    done = subprocess.run([sys.executable, "-c", read], input=stream.getvalue(), capture_output=True)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(words[-1] if words else f"reading it ended with exit code {done.returncode}")
    return pl.read_parquet(stream)


def _columns(path: Path, frame: pl.DataFrame, label: str, features: Sequence[str], client: str | None) -> Part:
    named = {"label": [label], "client": [client] if client else [], "features": features}
    for key, names in named.items():
        if missing := [name for name in names if name not in frame.columns]:
            raise DataError(
                f"{path}: data.{key}: there is no column {missing[0]!r}; there are {', '.join(frame.columns)}"
            )
    if not features:
        raise DataError(f"{path}: no column is left as a feature beside label and client")
    for name in features:
        kind = frame.schema[name]
        if not (kind.is_numeric() or kind == pl.Boolean):
            raise DataError(
                f"{path}: column {name!r} holds {kind}, and features are numbers; list those that are in data.features"
            )
        column = frame[name].cast(pl.Float64)
        if (bad := np.flatnonzero(~np.isfinite(column.to_numpy()))).size:
            raise DataError(
                f"{path}: column {name!r}, row {bad[0]} (of 0, 1, …): {frame[name][int(bad[0])]} is no number; "
                "remedy: fill or remove such rows"
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
    """Numbers as they are, all else as words."""
    if column.dtype.is_numeric():
        return column.to_numpy()
    return column.cast(pl.String).to_numpy().astype(np.str_)


# ------------------------------------------------------------------------------------------------- arrays


def _numpy(root: Path) -> dict[str, Array]:
    """Arrays by name, each read into memory once; no pickle."""
    try:
        if root.is_dir():
            return {path.stem: np.load(path, allow_pickle=False) for path in _entries(root) if path.suffix == ".npy"}
        with root.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if not isinstance(found, np.ndarray):
                return {name: found[name] for name in found.files}
    except (ValueError, EOFError, OSError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{root}: not NumPy's format, truncated, or with objects in it ({error}); remedy: save it again by np.savez"
        ) from None
    raise DataError(f"{root}: one array; name an .npz file of x and y, or a folder with x.npy and y.npy")


def _rows(root: Path, name: str, x: Array) -> Array:
    """x as it is stored: bytes stay bytes, others become float32; an axis of one channel is dropped."""
    if x.dtype.kind not in "fb" and x.dtype != np.uint8:
        raise DataError(f"{root}: {name} is of type {x.dtype}; save images as uint8, and other numbers as float32")
    if x.ndim < 2:
        raise DataError(f"{root}: {name} has shape {list(x.shape)}; expected rows in front, [N, features] or [N, H, W]")
    if x.ndim == 4 and x.shape[3] not in (1, 3) and x.shape[1] in (1, 3):
        raise DataError(f"{root}: {name} has shape {list(x.shape)}; channels come last: x.transpose(0, 2, 3, 1)")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))[0])
        raise DataError(f"{root}: {name}, row {row} (of 0, 1, …) has NaN or infinity; fill or remove such rows")
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x

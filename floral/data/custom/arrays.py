"""Read custom data from NumPy arrays in an .npz file or in a folder of .npy files."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from floral.data.custom.parts import SPLITS, Array, Part, Place, check_kind, entries_of, first_missing, labelled
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile

BROKEN = (
    ValueError, TypeError, KeyError, EOFError, OSError, NotImplementedError, RuntimeError, SyntaxError,
    OverflowError, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""Errors that NumPy and zipfile raise for a damaged file. RuntimeError: the archive has a password."""
IMAGE_CHANNELS = (1, 3)


def arrays(files: Sequence[RawFile], *, test_share: float, channels: str | None = None) -> Labelled:
    """Read the NumPy arrays x [N, ...] and y [N], or train_x, train_y, test_x and test_y.

    The optional array client [N] (or train_client and test_client) holds the natural client of each sample, for example
    the writer of a digit. The arrays are in an .npz file, or in a folder of .npy files with these names. If x has type
    uint8 (images), training divides it by 255. Floating-point numbers are used unchanged.

    `channels` says where x [N, ·, ·, ·] has its colour channels: "first", [N, C, H, W], or "last", [N, H, W, C]. With
    None, only the last axis can hold them, and only if it alone has length 1 or 3.

    Raises:
        DataError: a file is unreadable, an array is missing, is not expected, or has a wrong shape, type or value.
    """
    root = files[0].location
    return read_arrays([Place(root)], test_share=test_share, channels=channels)


def read_arrays(places: Sequence[Place], *, test_share: float, channels: str | None = None) -> Labelled:
    """Read NumPy arrays from several places. See `arrays`."""
    parts = [part for place in places for part in _parts(place, channels)]
    return labelled(parts, test_share, scale=255 if parts[0].x.dtype == np.uint8 else 1)


def _parts(place: Place, channels: str | None) -> list[Part]:
    root = place.path
    check_kind(root, "arrays")
    present = _numpy(root)
    prefixes = [f"{side}_" for side in SPLITS] if "train_x" in present else [""]
    clients = [f"{prefix}client" for prefix in prefixes]
    has_clients = any(name in present for name in clients)
    if has_clients and place.client is not None:
        raise DataError(
            f"{root}: the array {next(name for name in clients if name in present)} is not expected, because all "
            f"samples here belong to the client {place.client!r}; remove the array"
        )
    expected = [f"{prefix}{name}" for prefix in prefixes for name in "xy"] + (clients if has_clients else [])
    if set(present) != set(expected):
        raise DataError(
            f"{root}: found the arrays {', '.join(sorted(present)) or 'none'}, expected {', '.join(expected)}; save x "
            "and y (and client), or train_x, train_y, test_x and test_y (and train_client and test_client)"
        )
    parts: list[Part] = []
    for prefix in prefixes:
        x = inputs(root, f"{prefix}x", present[f"{prefix}x"], channels)
        labels = named(root, f"{prefix}y", present[f"{prefix}y"])
        of_array = named(root, f"{prefix}client", present[f"{prefix}client"]) if has_clients else None
        client = place.of_client(len(x)) if of_array is None else of_array
        side = prefix.removesuffix("_") or None
        parts.append(Part(where=root, x=x, labels=labels, client=client, domain=place.domain, side=side))
    return parts


def _numpy(root: Path) -> dict[str, Array]:
    """Read NumPy arrays into memory, by name. Arrays with pickled objects are refused."""
    try:
        if root.is_dir():
            return {path.stem: _loaded(path.open("rb"), path.stat().st_size) for path in _npy_files(root)}
        if zipfile.is_zipfile(root):
            with zipfile.ZipFile(root) as archive:
                members = archive.infolist()
                names = [member.filename.removesuffix(".npy") for member in members]
                if len(set(names)) < len(names):
                    raise ValueError(f"the archive has the array {max(names, key=names.count)} twice")
                return {
                    name: _loaded(archive.open(member), member.file_size)
                    for name, member in zip(names, members, strict=True)
                }
        _loaded(root.open("rb"), root.stat().st_size)
    except BROKEN as error:
        raise DataError(
            f"{root}: this file is not in NumPy's format, is truncated, or contains Python objects ({error}); "
            "remedy: save plain arrays with np.savez"
        ) from None
    raise DataError(
        f"{root}: this file holds a single array; set `data.path` to an .npz file with x and y, or to a folder with "
        "x.npy and y.npy"
    )


def _npy_files(root: Path) -> list[Path]:
    return [path for path in entries_of(root) if path.suffix == ".npy"]


def _loaded(stream: IO[bytes], size: int) -> Array:
    """Return the array in a stream of `size` bytes in .npy format, and close the stream.

    NumPy reserves the memory that the header announces. So the header is first compared with the size.

    Raises:
        ValueError: the header announces more values than there are.
    """
    with stream:
        version = np.lib.format.read_magic(stream)
        readers: dict[Any, Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        try:
            shape, _, kind = readers[version](stream)
        except MemoryError:  # Python's parser raises it, too, for a text that is nested too deeply.
            raise ValueError("a header is nested too deeply") from None
        if not kind.hasobject and (announced := math.prod(shape) * kind.itemsize) != size - stream.tell():
            raise ValueError(
                f"a header announces an array of shape {list(shape)}, {announced:,} bytes, but there are "
                f"{size - stream.tell():,}"
            )
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)


def inputs(root: Path, name: str, x: Array, channels: str | None) -> Array:
    """Return the inputs x in the type in which they are stored: uint8 is unchanged, other numbers become float32.

    Colour channels become the last axis. If there is one channel, its axis is removed.

    Raises:
        DataError: the type or the shape is wrong, or a value is not finite.
    """
    if x.dtype.kind not in "fb" and x.dtype != np.uint8:
        raise DataError(
            f"{root}: the array {name} is of type {x.dtype}; save images as uint8, and other numbers as float32"
        )
    if x.ndim < 2:
        raise DataError(
            f"{root}: the array {name} has shape {list(x.shape)}; give it the shape [N, features] or [N, H, W]"
        )
    with np.errstate(over="ignore"):
        values = x if x.dtype == np.uint8 else x.astype(np.float32)
    if values.dtype == np.float32 and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values.reshape(len(x), -1)).all(1))[0])
        what = "a value that is too large for single precision" if np.isfinite(x[row]).all() else "NaN or infinity"
        raise DataError(
            f"{root}: the array {name}, row {row} (counted from 0) has {what}; give such rows finite values, "
            "or remove them"
        )
    return _channels_last(root, name, values, channels)


def _channels_last(root: Path, name: str, x: Array, channels: str | None) -> Array:
    if channels is not None and x.ndim != 4:
        raise DataError(
            f"{root}: `data.channels` is for arrays with four axes, but the array {name} has shape {list(x.shape)}; "
            "remove the key"
        )
    if x.ndim == 4 and channels is None and not (x.shape[3] in IMAGE_CHANNELS and x.shape[1] not in IMAGE_CHANNELS):
        raise DataError(
            f"{root}: the array {name} has shape {list(x.shape)}, so it is not certain which axis holds the colour "
            "channels; set `data.channels: first` for [N, C, H, W], or `data.channels: last` for [N, H, W, C]"
        )
    if channels == "first":
        x = np.moveaxis(x, 1, -1)
    return x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x


def named(root: Path, name: str, values: Array) -> Array:
    """Return an array of classes or clients. Bytes become text.

    Raises:
        DataError: an entry has no value, or the type is neither integer nor text.
    """
    if values.dtype.kind not in "iufbUS":
        raise DataError(
            f"{root}: the array {name} is of type {values.dtype}; write classes and clients as integers or as words"
        )
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{root}: the array {name} has bytes that are not UTF-8 ({error}); save text") from None
    if values.ndim == 1 and (row := first_missing(values)) is not None:
        raise DataError(
            f"{root}: the array {name}, row {row} (counted from 0) has {str(values[row])!r}, which means that "
            "there is no value; give such rows a value, remove them, or rename this class or client"
        )
    return values

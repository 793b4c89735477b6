"""Read custom data from NumPy arrays in an .npz file or in a folder of .npy files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from floral.data.custom_parts import SPLITS, Array, Part, entries_of, labelled
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile


def arrays(files: Sequence[RawFile], *, test_share: float) -> Labelled:
    """Read the NumPy arrays x [N, ...] and y [N], or train_x, train_y, test_x and test_y.

    The optional array client [N] (or train_client and test_client) holds the natural client of each sample, for example
    the writer of a digit. The arrays are in an .npz file, or in a folder of .npy files with these names. If x has type
    uint8 (images), training divides it by 255. Floating-point numbers are used unchanged.

    Raises:
        DataError: a file is unreadable, an array is missing, is not expected, or has a wrong shape, type or value.
    """
    root = files[0].location
    present = _numpy(root)
    prefixes = [f"{side}_" for side in SPLITS] if "train_x" in present else [""]
    clients = [f"{prefix}client" for prefix in prefixes]
    has_clients = any(name in present for name in clients)
    expected = [f"{prefix}{name}" for prefix in prefixes for name in "xy"] + (clients if has_clients else [])
    if set(present) != set(expected):
        raise DataError(
            f"{root}: found the arrays {', '.join(sorted(present)) or 'none'}, expected {', '.join(expected)}; save x "
            "and y (and client), or train_x, train_y, test_x and test_y (and train_client and test_client)"
        )
    parts = [
        Part(
            where=root, x=_inputs(root, f"{prefix}x", present[f"{prefix}x"]), labels=present[f"{prefix}y"],
            client=present[f"{prefix}client"] if has_clients else None,
        )
        for prefix in prefixes
    ]  # fmt: skip
    return labelled(parts, test_share, scale=255 if parts[0].x.dtype == np.uint8 else 1)


def _numpy(root: Path) -> dict[str, Array]:
    """Read NumPy arrays into memory, by name. Arrays with pickled objects are refused."""
    try:
        if root.is_dir():
            return {path.stem: np.load(path, allow_pickle=False) for path in entries_of(root) if path.suffix == ".npy"}
        with root.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if not isinstance(content, np.ndarray):
                return {name: content[name] for name in content.files}
    except (ValueError, EOFError, OSError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{root}: this file is not in NumPy's format, is truncated, or contains Python objects ({error}); "
            "remedy: save plain arrays with np.savez"
        ) from None
    raise DataError(
        f"{root}: this file holds a single array; set `data.path` to an .npz file with x and y, or to a folder with "
        "x.npy and y.npy"
    )


def _inputs(root: Path, name: str, x: Array) -> Array:
    """Return the inputs x in the type in which they are stored: uint8 is unchanged, other numbers become float32.

    A last axis of length 1 (one colour channel) is removed.

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
    if x.ndim == 4 and x.shape[3] not in (1, 3) and x.shape[1] in (1, 3):
        raise DataError(
            f"{root}: the array {name} has shape {list(x.shape)}, but colour channels must come last; "
            "save x.transpose(0, 2, 3, 1)"
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))[0])
        raise DataError(
            f"{root}: the array {name}, row {row} (counted from 0) has NaN or infinity; give such rows finite values, "
            "or remove them"
        )
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x

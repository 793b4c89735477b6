"""Read custom data that PFLlib has divided among clients: train/<k>.npz and test/<k>.npz."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from floral.data.custom.arrays import BROKEN, inputs, named
from floral.data.custom.parts import SPLITS, Array, Part, entries_of, labelled
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile

PLAIN = {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}
"""Names in pickle files that make NumPy arrays and numbers. All other names are refused, because they may run code."""
NUMBERED = re.compile(r"(0|[1-9][0-9]*)\.npz")
NOTES = {"config.json"}
"""Files that PFLlib writes beside the folders train and test."""


def pflib(files: Sequence[RawFile], *, test_share: float, channels: str | None = None) -> Labelled:
    """Read train/<k>.npz and test/<k>.npz of each client k, as the scripts of PFLlib write them.

    Each file has the array `data`: a pickled dictionary with x [N, ...] and y [N]. Images are [N, C, H, W], as in
    PyTorch, unless `channels` is last. `test_share` is not used, because the data are split.

    Raises:
        DataError: a file is missing or has other content, or a client has no training or test file.
    """
    root = files[0].location
    entries = {path.name: path for path in entries_of(root) if path.name not in NOTES}
    if set(entries) != set(SPLITS):
        raise DataError(
            f"{root}: a folder of PFLlib contains the folders train and test, and perhaps config.json, but here are "
            f"{', '.join(sorted(entries)) or 'none'}; set `data.path` to such a folder"
        )
    of_side = {side: _files(entries[side]) for side in SPLITS}
    for side, opposite in (SPLITS, SPLITS[::-1]):
        if lonely := sorted(of_side[side].keys() - of_side[opposite].keys()):
            path = of_side[side][lonely[0]]
            raise DataError(f"{path}: there is no {opposite}/{path.name} of the same client; add it, or remove {path}")
    parts = [_part(path, client, side, channels) for side in SPLITS for client, path in of_side[side].items()]
    return labelled(parts, test_share, scale=255 if parts[0].x.dtype == np.uint8 else 1)


def _files(folder: Path) -> dict[int, Path]:
    """Return the files of a folder by the number of the client."""
    files: dict[int, Path] = {}
    for path in entries_of(folder):
        if not NUMBERED.fullmatch(path.name):
            raise DataError(f"{path}: files of PFLlib are named 0.npz, 1.npz, …; remove or rename this file")
        files[int(path.stem)] = path
    if not files:
        raise DataError(f"{folder}: there are no files here; add 0.npz, 1.npz, …")
    return dict(sorted(files.items()))


def _part(path: Path, client: int, side: str, channels: str | None) -> Part:
    values = _dictionary(path)
    if set(values) != {"x", "y"}:
        raise DataError(
            f"{path}: `data` has the entries {', '.join(map(str, sorted(values, key=str))) or 'none'}, expected x and y"
        )
    x, y = (np.asarray(values[name]) for name in "xy")
    if x.dtype == object:
        raise DataError(
            f"{path}: x holds Python objects, as for texts; only arrays of numbers can be read, so save such"
        )
    x = inputs(path, "x", x, (channels or "first") if x.ndim == 4 else channels)
    return Part(where=path, x=x, labels=named(path, "y", y), client=np.full(len(x), client), side=side)


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickled containers, numbers, texts and NumPy arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it contains {module}.{name}")
        return super().find_class(module, name)


def _dictionary(path: Path) -> dict[Any, Any]:
    """Return the pickled dictionary in the array `data` of an .npz file.

    Raises:
        DataError: the file is damaged, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("data.npy") as stream:
            value = _object(stream)
    except (*BROKEN, pickle.UnpicklingError, AttributeError, ImportError, IndexError, MemoryError) as error:
        raise DataError(
            f"{path}: this is no file of PFLlib, or it is damaged ({error}); save the dictionary of x and y with "
            'np.savez_compressed(file, data={"x": x, "y": y})'
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: `data` is of type {type(value).__name__}; save a dictionary with x and y")
    return value


def _object(stream: IO[bytes]) -> Any:
    """Return the only object of an .npy stream."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"it has version {version} of NumPy's format")
    shape, _, kind = np.lib.format.read_array_header_1_0(stream)
    if not kind.hasobject or shape != ():
        raise ValueError(f"`data` is an array of shape {list(shape)} and type {kind}, and no dictionary")
    held: Array = _PlainUnpickler(stream).load()
    return held.item() if isinstance(held, np.ndarray) and held.shape == () else held

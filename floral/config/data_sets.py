"""Data sets: the entries of config/data.lock and custom data, with the hashes of their content."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from floral.config import paths
from floral.config.hashing import hash8
from floral.config.reading import parse, read
from floral.config.schema.data import NOTHING, CustomData, DataFile, DataSet, Synthetic
from floral.io import files

CUSTOM_PREFIX = "own-"
"""Prefix of the name under which custom data are stored. A hash follows it."""
CUSTOM_VERSION = 2
"""Version of the custom-data readers. Increase it when they produce other samples from the same files."""
CUSTOM_ADVICE = "put it there, or name another in data.path of the task"
"""Remedy for missing custom data."""


@cache
def data_lock() -> dict[str, DataSet]:
    """Read the data sets of config/data.lock by name."""
    path = paths.CONFIG_FOLDER / "data.lock"
    return {name: parse(DataSet, entry, f"{path}: {name}") for name, entry in read(path).items()}


def data_set(data: str | CustomData) -> DataSet:
    """Return the data set of a task: an entry of config/data.lock, or an equivalent one for custom data."""
    if isinstance(data, str):
        return data_lock()[data]
    path = custom_path(data)
    return DataSet(
        title=f"Custom data, {data.kind} {path.name}", reader=data.kind, options=data.options, own=True,
        files=(DataFile(path=str(path), sha256=_content(path)[0]),),
    )  # fmt: skip


def stored_data(data: str | Synthetic | CustomData) -> str | Synthetic:
    """Return the name under which data are stored.

    The name of custom data contains a hash of their content and options, or of their path if they do not exist yet.
    """
    if not isinstance(data, CustomData):
        return data
    entry = data_set(data)
    content = [file.sha256 or file.path for file in entry.files]
    return CUSTOM_PREFIX + hash8([CUSTOM_VERSION, entry.reader, dict(entry.options), content])


def why_unreadable(data: CustomData) -> str | None:
    """Return which file or folder of custom data is missing or unreadable, or None if all can be read."""
    return _content(custom_path(data))[1]


def custom_path(data: CustomData) -> Path:
    """Return the absolute path of custom data."""
    return Path(data.path).expanduser().absolute()


@cache
def _content(path: Path) -> tuple[str | None, str | None]:
    """Return (SHA-256, None) of custom data, or (None, why they cannot be read).

    A process reads the data only once, so changes made while a command runs are found by the next command.
    """
    if not path.exists():
        return None, f"{path} does not exist"
    try:
        return files.content_sha256(path), None
    except OSError as error:
        return None, f"{error.filename or path} cannot be read: {error.strerror}"


def data_digest(data: str | Synthetic | CustomData) -> str | None:
    """Return a digest of the data that is known before they are fetched; None for synthetic or no data.

    It is computed from the hashes in data.lock, or from those of custom data. If a hash is null or the reader has
    options, the name and options of the reader are included.
    """
    if isinstance(data, Synthetic) or data == NOTHING:
        return None
    entry = data_set(data)
    content: list[Any] = [stored_data(data), hashes := [file.sha256 for file in entry.files]]
    return hash8([*content, entry.reader, dict(entry.options)] if None in hashes or entry.options else content)

"""Data sets: the entries of config/data.lock, and the user's own files, with the hashes of their content."""

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
"""Own data are stored under this and a hash."""
CUSTOM_VERSION = 2
"""Raised by hand when other rows are made of the same own data, as RESULTS_VERSION is for results."""
CUSTOM_ADVICE = "put it there, or name another in data.path of the task"
"""What to do about own data that are not there."""


@cache
def data_lock() -> dict[str, DataSet]:
    """The accepted data sets of config/data.lock."""
    path = paths.CONFIG / "data.lock"
    return {name: parse(DataSet, entry, f"{path}: {name}") for name, entry in read(path).items()}


def data_set(data: str | CustomData) -> DataSet:
    """Where the data of a task come from: an entry of config/data.lock, or the like of one for its own."""
    if isinstance(data, str):
        return data_lock()[data]
    path = custom_path(data)
    return DataSet(
        title=f"Own data, {data.kind} {path.name}", reader=data.kind, options=data.options, own=True,
        files=(DataFile(path=str(path), sha256=_content(path)[0]),),
    )  # fmt: skip


def stored_data(data: str | Synthetic | CustomData) -> str | Synthetic:
    """Under which name data are stored; own data under one that their content and their options decide (their path,
    while they are not there)."""
    if not isinstance(data, CustomData):
        return data
    made = data_set(data)
    content = [file.sha256 or file.path for file in made.files]
    return CUSTOM_PREFIX + hash8([CUSTOM_VERSION, made.reader, dict(made.options), content])


def why_unreadable(data: CustomData) -> str | None:
    """Which file or folder of own data is not there or cannot be read; None where all can."""
    return _content(custom_path(data))[1]


def custom_path(data: CustomData) -> Path:
    return Path(data.path).expanduser().absolute()


@cache
def _content(path: Path) -> tuple[str | None, str | None]:
    """The sha256 of own data, or None and why they cannot be read.

    Read once in a process: own data that change while a command runs are found changed by the next one.
    """
    if not path.exists():
        return None, f"{path} does not exist"
    try:
        return files.content_sha256(path), None
    except OSError as error:
        return None, f"{error.filename or path} cannot be read: {error.strerror}"


def data_digest(data: str | Synthetic | CustomData) -> str | None:
    """What is known of the data before they are fetched: the hashes that data.lock promises, or that own data have.
    Where one is open, or the reader has options, how they are read too."""
    if isinstance(data, Synthetic) or data == NOTHING:
        return None
    made = data_set(data)
    known: list[Any] = [stored_data(data), promised := [file.sha256 for file in made.files]]
    return hash8([*known, made.reader, dict(made.options)] if None in promised or made.options else known)

"""Find the data set of a task and compute hashes of its content.

A data set is an entry of config/data.lock, or custom data, which are the user's own files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from floral.config import layers, paths, pretrained
from floral.config.hashing import hash8
from floral.config.reading import parse, read
from floral.config.schema.data import NOTHING, CustomData, DataFile, DataSet, Synthetic
from floral.io import files

CUSTOM_PREFIX = "own-"
"""Start of the name of the folder that stores custom data. A hash follows."""
CUSTOM_VERSION = 4
"""Version of the readers of custom data. Increase it when the readers return other samples from the same files."""


@cache
def data_lock() -> dict[str, DataSet]:
    """Return the data sets of config/data.lock, as a mapping from name to data set.

    Raises:
        ConfigError: a value is wrong, or the study and the package both have a data set of this name, and the entry of
            the study has no `overrides: true`.
    """
    return {name: parse(DataSet, entry, f"{path}: {name}") for name, (path, entry) in _entries().items()}


def _entries() -> dict[str, tuple[Path, Any]]:
    """Return the entries of config/data.lock by name, each with its file. Those of the study replace the others."""
    entries: dict[str, tuple[Path, Any]] = {}
    for path in reversed(layers.files("data.lock")):
        for name, entry in read(path).items():
            if isinstance(entry, dict):
                replaced = str(entries[name][0]) if name in entries else None
                layers.check_overrides(entry.pop(layers.OVERRIDES, False), f"{path}: {name}", replaced)
            entries[name] = (path, entry)
    return entries


def place(stored: str) -> str:
    """Return the file and the entry of a data set, for messages.

    `stored` is the name of the data set, or of its folder in results/data.
    """
    name = data_set_in(stored) or stored
    return f"{_entries()[name][0] if name in _entries() else layers.file('data.lock')}: {name}"


def data_set(data: str | CustomData) -> DataSet:
    """Return the title, the files and the reader function of a task's data.

    If `data` is a name, they are the entry of config/data.lock with this name. For custom data (the user's own files),
    they are made from the keys of the task.
    """
    if isinstance(data, str):
        return data_lock()[data]
    path, custom = custom_path(data), _custom_files(data)
    return DataSet(
        title=f"Custom data, {data.kind} {path.name}", reader=data.kind, options=data.options, own=True,
        files=tuple(DataFile(path=str(file), sha256=_content(file, key)[0]) for file, key in custom.items()),
    )  # fmt: skip


def data_set_in(stored: str) -> str | None:
    """Return the name of the data set in config/data.lock that the folder results/data/<stored> stores, or None."""
    return next((name for name in data_lock() if stored in (name, stored_data(name))), None)


def stored_data(data: str | Synthetic | CustomData) -> str | Synthetic:
    """Return the name of the folder in results/data that stores the data.

    The folder of a data set in config/data.lock has the name of the data set. If its version is above 1, the version
    follows, as in "mnist-v2". For custom data (the user's own files),
    the name contains a hash of their content and options. If the files cannot be read, their path is hashed instead of
    their content. Synthetic data are never stored, so for them the function returns `data` unchanged.
    """
    if isinstance(data, str):
        version = 1 if data == NOTHING else data_set(data).version
        return data if version == 1 else f"{data}-v{version}"
    if isinstance(data, Synthetic):
        return data
    entry = data_set(data)
    content = [file.sha256 or file.path for file in entry.files]
    return CUSTOM_PREFIX + hash8([CUSTOM_VERSION, entry.reader, dict(entry.options), content])


def custom_advice(key: str) -> str:
    """Return the remedy for missing custom data, which the key `key` of the task names.

    "It" is the file or folder that the message names.
    """
    return f"put it there, or name another in `{key}` of the task"


def why_unreadable(data: CustomData) -> str | None:
    """Return why custom data (the user's own files) cannot be read, with the remedy, or None if they can be read."""
    return next((why for _, why in _unreadable(data)), None)


def unreadable_key(data: CustomData) -> str:
    """Return the key of `data` that names the file or folder of `why_unreadable`."""
    return next(key for key, _ in _unreadable(data))


def _unreadable(data: CustomData) -> Iterator[tuple[str, str]]:
    """Yield the key in `data` and the reason of each file or folder that cannot be read."""
    for file, key in _custom_files(data).items():
        if why := _content(file, key)[1]:
            yield key, why


def _custom_files(data: CustomData) -> dict[Path, str]:
    """Return the file or folder of custom data, and then the files of its tokenizer if it has one.

    Each has the key in `data` that names it.
    """
    tokenizer_files = () if data.tokenizer is None else (pretrained.TOKENIZER, pretrained.CONFIG)
    return {
        custom_path(data): "path",
        **{_absolute(str(data.tokenizer)) / name: "tokenizer" for name in tokenizer_files},
    }


def custom_path(data: CustomData) -> Path:
    """Return the absolute path of custom data, which are a file or folder of the user.

    A relative path begins in the folder of the study.
    """
    return _absolute(data.path)


def _absolute(name: str) -> Path:
    return paths.in_study(name).absolute()


@cache
def _content(path: Path, key: str) -> tuple[str | None, str | None]:
    """Return the SHA-256 of a file or folder and None, or None and the reason why it cannot be read.

    `key` is the key of `data` that names it.

    The result is cached. So if the files change while a command runs, only the next command notices this.
    """
    try:
        if not path.exists():
            return None, f"{path} does not exist; remedy: {custom_advice(f'data.{key}')}"
        return files.content_sha256(path), None
    except files.NotPlain as error:
        return None, str(error)
    except OSError as error:
        return (
            None,
            f"{error.filename or path} cannot be read: {error.strerror}; remedy: {custom_advice(f'data.{key}')}",
        )


def data_digest(data: str | Synthetic | CustomData) -> str | None:
    """Return a hash of the content of data, or None for synthetic data and `data: nothing`.

    The hash is computed from the name of the data and the SHA-256 of each file. config/data.lock lists the SHA-256 of
    each file of a data set, so the data set need not be downloaded. For custom data, the SHA-256 is computed from the
    user's files. If the function that reads the files has options, or if a SHA-256 is unknown, the hash also covers the
    name and the options of this function.
    """
    if isinstance(data, Synthetic) or data == NOTHING:
        return None
    entry = data_set(data)
    content: list[Any] = [stored_data(data), hashes := [file.sha256 for file in entry.files]]
    return hash8([*content, entry.reader, dict(entry.options)] if None in hashes or entry.options else content)

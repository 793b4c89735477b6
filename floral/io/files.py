"""Atomic writes, content hashes and listings of files."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def atomic(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file atomically and durably: after an error the old file is unchanged, and no partial file is left.

    `content` may be an iterator of pieces, if it is too large for memory. Only one process at a time may write a file:
    the partial file always has the same name, so that the next attempt overwrites what a killed process left.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync_names(path.parent)


def content_sha256(path: Path) -> str:
    """The sha256 of a file, or of the names and contents of all files below a folder except hidden ones.

    Raises:
        OSError: the path does not exist, or a file cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    content = hashlib.sha256()
    for file in visible(path):
        content.update(f"{file.relative_to(path).as_posix()}\0{content_sha256(file)}\n".encode())
    return content.hexdigest()


def visible(folder: Path) -> list[Path]:
    """All files below a folder, sorted, except hidden ones such as .DS_Store. Links are followed."""
    paths = (Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _sync_names(folder: Path) -> None:
    """Write a folder's file names to disk, so that they survive a power cut, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

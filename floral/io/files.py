"""Files that are whole or not there: what a killed process or a full disk may leave behind; what they hold."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def atomic(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace a file in one step, durably: on a full disk the old one stays and no half-written one is left.

    Content that is too large for memory comes in pieces.

    One process at a time: the half-written file has one name, so that the next attempt removes what a kill left.
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
    """The sha256 of a file, or over the names and contents of all files below a folder but the hidden ones.

    Raises:
        OSError: there is none, or one cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    content = hashlib.sha256()
    for file in visible(path):
        content.update(f"{file.relative_to(path).as_posix()}\0{content_sha256(file)}\n".encode())
    return content.hexdigest()


def visible(folder: Path) -> list[Path]:
    """All files below a folder, links followed, in order, but those that a system or an editor hides (.DS_Store, …)."""
    found = (Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _sync_names(folder: Path) -> None:
    """Let the new name survive a power cut, where the file system can promise that for a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

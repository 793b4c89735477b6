"""Write files atomically, hash the content of files, and list the files of a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "the disk is full; free space there, then repeat the same command",
    errno.EDQUOT: "your disk quota is used up; free space there, then repeat the same command",
    errno.EROFS: "this place is read-only; choose another folder",
    errno.EACCES: "you have no permission; change the permission, or choose another folder",
    errno.EPERM: "you have no permission; change the permission, or choose another folder",
    errno.ENOTDIR: "a file is where a folder should be; move the file, or choose another folder",
    errno.EEXIST: "a file is where a folder should be; move the file, or choose another folder",
    errno.EISDIR: "a folder is where a file should be; move the folder",
    errno.ENAMETOOLONG: "this name is too long for the disk; choose shorter names",
    errno.EIO: "the disk has an error; ask its administrator",
    errno.ESTALE: "the network disk was disconnected; repeat the same command",
}
"""Number of an error of the operating system → what happened, and what to do. No program can prevent these errors."""


def remedy(error: BaseException | None) -> str | None:
    """Return in one sentence which file or folder cannot be used and what to do; None for other errors.

    An error that was raised while this error was handled is not examined, but the error that caused this one is.
    """
    while error is not None and not (isinstance(error, OSError) and error.errno in REMEDIES):
        error = error.__cause__
    if not isinstance(error, OSError) or error.errno is None:
        return None
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return f"{place}{REMEDIES[error.errno]}"


class NotPlain(ValueError):
    """Error: a path is no plain file or folder. The message names the path, and can be printed on every terminal."""


def atomic(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file atomically. After an error, the old file is unchanged and no partly written file is left.

    When the function returns, the file is on disk. Content that is too large for memory can be an iterator of pieces.
    Only one process at a time may write the same file. The content is first written to <name>.partial. If the process
    is killed, that file stays, and the next call overwrites it.

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
    except OSError as error:
        error.filename = error.filename or str(path)  # Python does not name the file if the disk is full
        partial.unlink(missing_ok=True)
        raise
    _sync_names(path.parent)


def date_now(paths: Iterable[Path], ahead_s: float = 60.0) -> int:
    """Give the present time to files that are dated more than `ahead_s` seconds in the future, and count them.

    A machine with a wrong clock wrote them. Missing files are left out.
    """
    count = 0
    for path in paths:
        if path.exists() and path.stat().st_mtime > time.time() + ahead_s:
            os.utime(path)
            count += 1
    return count


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file. For a folder, hash the names and contents of all its files, except hidden files.

    Raises:
        OSError: the path does not exist, or a file cannot be read.
        NotPlain: a path is no plain file or folder, or a name is not in UTF-8.
    """
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise NotPlain(f"{path} is a device, a pipe or a socket, and no file; remedy: remove it")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    content = hashlib.sha256()
    for file in visible(path):
        content.update(f"{file.relative_to(path).as_posix()}\0{content_sha256(file)}\n".encode())
    return content.hexdigest()


def visible(folder: Path) -> list[Path]:
    """Return all files in a folder and its subfolders, sorted. Hidden files such as .DS_Store are left out.

    Symbolic links to folders are followed.

    Raises:
        OSError: a folder cannot be read.
        NotPlain: a name is not in UTF-8, so it can be neither printed nor written to a report.
    """

    def stop(error: OSError) -> None:
        raise error

    paths: list[Path] = []
    for at, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(at) / name for name in (*folders, *names)):
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise NotPlain(f"{str(path)!a}: this name is not in UTF-8; remedy: rename the file or folder") from None
        paths += [Path(at) / name for name in names if not name.startswith(".")]
    return sorted(paths)


def _sync_names(folder: Path) -> None:
    """Write the file names of a folder to disk, so that a power cut does not lose them.

    On file systems that do not support this, the function does nothing.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

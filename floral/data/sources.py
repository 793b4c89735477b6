"""Find raw data files in the data folder, or download them from the first mirror that works, and verify them.

The hash of a file is that of its unpacked content. So a file is accepted whether it is compressed or not.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import importlib.util
import io
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.schema.data import DataFile
from floral.io import files

BLOCK_BYTES = 1 << 16
PROGRESS_BYTES = 10_000_000
"""Bytes between two progress lines if the size of a download is unknown; else there is one line per tenth."""
MIRROR_TIMEOUT_S = 30.0
"""Seconds without a byte after which a mirror is given up."""

PACKAGE = "package:"
"""Prefix of URLs for files inside installed Python packages, package:<package>/<path>."""

RECORD = "recorded.json"
"""File in the folder of raw files with the hashes that the first fetch recorded where data.lock has null."""

Report = Callable[[str], None]


class DataError(ConfigError):
    """The error for a raw file that is missing, damaged or altered, or cannot be stored.

    The message names the file and the remedy.
    """


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A raw file, its location, and the hash of its unpacked content.

    `verified` is True if data.lock has the hash. It is False if data.lock has null in its place.
    """

    file: DataFile
    location: Path
    sha256: str
    verified: bool


def obtain(
    file: DataFile,
    raw: Path,
    data_folders: Sequence[Path] = (),
    recorded: str | None = None,
    report: Report | None = None,
) -> RawFile:
    """Return a raw file: the first copy in the folders `data_folders`, in the folder `raw`, or on a mirror.

    The content of the copy must have the expected hash. If several of `data_folders` have the file, the first copy with
    this content is used. A copy from a mirror is downloaded to `raw`. A file with an absolute path belongs to custom
    data and is read where it is.

    Args:
        recorded: the hash that an earlier fetch recorded. It is used if data.lock has null instead of a hash.

    Raises:
        DataError: the file cannot be found, is damaged or does not have the expected content, or the disk is full.
    """
    if Path(file.path).is_absolute():
        return _custom(file)
    expected = file.sha256 or recorded
    target = raw / Path(file.path).name
    again = "; or write the found sha256 into data.lock, which renames its runs" if not file.sha256 else ""
    copies = [
        path for folder in data_folders for name in _packed_or_not(file.path) if (path := folder / name).is_file()
    ]
    wrong: DataError | None = None
    for copy in copies:
        try:
            return _verified(file, copy, expected, f"replace it, or remove it to download it{again}")
        except DataError as error:
            wrong = wrong or error
    if wrong is not None:
        raise wrong
    if target.is_file():
        return _verified(file, target, expected, f"delete it: the next fetch downloads it again{again}")
    problems: list[str] = []
    for url in file.urls:
        try:
            if not on_the_network(url):
                return _verified(file, _in_package(url), expected, f"install the pinned version of the package{again}")
            return _download(file, url, target, expected, report or _to_stderr)
        except (OSError, http.client.HTTPException, DataError) as error:
            if full_disk(error):
                target.with_name(target.name + ".part").unlink(missing_ok=True)
                raise DataError(disk_is_full(raw)) from None
            problems.append(f"{url}: {error}")
    places = [str(folder / file.path) for folder in data_folders]
    looked = f"looked for {' and '.join(places)}" if places else "no data folder is set"
    tried = "".join(f"\n  tried {problem}" for problem in problems) or "\n  data.lock has no URL for it"
    raise DataError(
        f"{file.path}: this data file is missing and could not be downloaded; {looked}{tried}\n  remedy: {advice(file)}"
    )


def is_there(file: DataFile, raw: Path, data_folders: Sequence[Path] = ()) -> bool:
    """Return whether a copy of a file exists in `data_folders`, in `raw` or in an installed package.

    Its content is not checked.
    """
    paths = [raw / Path(file.path).name]
    paths += [folder / name for folder in data_folders for name in _packed_or_not(file.path)]
    return any(path.is_file() for path in paths) or any(map(_is_in_package, file.urls))


def on_the_network(url: str) -> bool:
    """Return whether reading a URL needs the network.

    A URL `package:…` does not, because its file is in an installed Python package.
    """
    return not url.startswith(PACKAGE)


def advice(file: DataFile) -> str:
    """Return the remedy for a missing data file, as text for an error message."""
    return (
        f"put {' or '.join(_packed_or_not(file.path))} into a folder, "
        "and name that folder by FLORAL_DATA, --data-dir or data_dir"
    )


def unpacked(path: Path) -> io.BufferedIOBase:
    """Open a raw file for reading, and unpack it if it is gzipped.

    The first two bytes decide whether it is gzipped. The file name cannot, because browsers unpack files without
    renaming them.
    """
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def content(path: Path) -> bytes:
    """Return the unpacked content of a raw file.

    Raises:
        DataError: the file is gzipped, and its compressed content is truncated or damaged.
    """
    try:
        with unpacked(path) as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_damaged(path, error)) from None


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a raw file's unpacked content.

    Raises:
        DataError: the file is gzipped, and its compressed content is truncated or damaged.
    """
    try:
        with unpacked(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_damaged(path, error)) from None


def full_disk(error: BaseException) -> bool:
    """Return whether an operation failed because the disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_is_full(folder: Path) -> str:
    """Return the error message for a full disk, with the folder and the remedy."""
    return f"{folder}: the disk is full, nothing was written; free space, or set FLORAL_RESULTS to another disk"


def _verified(file: DataFile, location: Path, expected: str | None, remedy: str, name: str = "") -> RawFile:
    sha256 = content_sha256(location)
    if expected is not None and sha256 != expected:
        origin = "from data.lock" if file.sha256 else "recorded by the first fetch"
        raise DataError(
            f"{name or location}: the content of {file.path} is not as expected\n"
            f"  expected sha256 {expected} ({origin})\n"
            f"  found    sha256 {sha256} (of the unpacked content)\n"
            f"  remedy: {remedy}"
        )
    return RawFile(file=file, location=location, sha256=sha256, verified=file.sha256 is not None)


def _custom(file: DataFile) -> RawFile:
    location = Path(file.path)
    try:
        sha256 = files.content_sha256(location)
    except OSError as error:
        raise DataError(
            f"{error.filename or location}: this file of custom data cannot be read: {error.strerror}\n"
            f"  remedy: {data_sets.custom_advice('data')}"
        ) from None
    except files.NotPlain as error:
        raise DataError(str(error)) from None
    if sha256 != file.sha256:
        raise DataError(f"{location}: these data have changed since this command started; run the command again")
    return RawFile(file=file, location=location, sha256=sha256, verified=True)


def _download(file: DataFile, url: str, target: Path, expected: str | None, report: Report) -> RawFile:
    """Download `url` and return the verified file `target`.

    The bytes are written to `<target>.part`, which is renamed after verification. An earlier, partial download is
    resumed.
    """
    # urllib instead of pooch, the common library for downloads, because pooch cannot resume a partial file.
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    inherited = _size(part) > 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, report)
            raw = _verified(file, part, expected, "use another mirror", "the downloaded file")
            break
        except DataError:
            part.unlink()
            # The part may come from another mirror with another gzip header, so the download starts again.
            if not inherited:
                raise
            inherited = False
        except (OSError, http.client.HTTPException) as error:
            if full_disk(error) or _size(part) <= before:
                raise
            report(f"{url}: {error}; resuming at {_size(part):,} bytes")
    part.replace(target)
    return RawFile(file=file, location=target, sha256=raw.sha256, verified=raw.verified)


def _transfer(url: str, part: Path, report: Report) -> None:
    """Download the bytes of `url` that `part` does not have yet, and append them to it.

    Raises:
        OSError, HTTPException: the connection ended early.
    """
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=MIRROR_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # `part` is complete or too long; the hash check follows.
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        done, reported = start, -1
        with part.open("ab" if start else "wb") as stream:
            while block := response.read(BLOCK_BYTES):
                stream.write(block)
                done += len(block)
                steps = 10 * done // total if total else done // PROGRESS_BYTES
                if steps > reported:
                    reported = steps
                    report(f"{url}: {done:,} of {f'{total:,}' if total else 'unknown'} bytes")
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _in_package(url: str) -> Path:
    """Return the path of the file behind a URL `package:<package>/<path>`, without importing the package.

    Raises:
        DataError: the package or the file is missing.
    """
    package, _, path = url.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the Python package {package} is not installed; install it")
    location = Path(spec.submodule_search_locations[0]) / path
    if not location.is_file():
        raise DataError(f"the installed Python package {package} has no file {path}; install its pinned version")
    return location


def _is_in_package(url: str) -> bool:
    try:
        return not on_the_network(url) and _in_package(url).is_file()
    except DataError:
        return False


def _packed_or_not(path: str) -> tuple[str, str]:
    plain = path.removesuffix(".gz")
    return (path, plain) if plain != path else (path, f"{path}.gz")


def _damaged(path: Path, error: BaseException) -> str:
    return f"{path}: this gzip file is truncated or damaged ({error}); remedy: replace it by a complete copy"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

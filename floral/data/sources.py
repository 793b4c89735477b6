"""Raw files: found in the data folder, or downloaded from the first mirror that delivers, and always verified.

The download is a small loop over urllib because pooch, the obvious library, cannot resume a partial file. What is
hashed is the unpacked content: copies that were gzipped again are as good as the original.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.schema.data import DataFile
from floral.io import files

BLOCK = 1 << 16
REPORT_EVERY = 10_000_000
"""Bytes between two lines of progress where a mirror does not tell the size; else one line per tenth."""
TIMEOUT = 30.0
"""Seconds without a byte after which a mirror counts as dead."""

PACKAGE = "package:"
"""Before <package>/<path>: a URL of a file inside an installed Python package."""

RECORD = "recorded.json"
"""In the folder of the raw files: the hashes found at the first fetch of files for which data.lock promises none."""

Report = Callable[[str], None]


class DataError(ConfigError):
    """A raw file is missing, damaged, altered or cannot be stored: the message names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A verified raw file: its place, the hash of its unpacked content, and whether data.lock promises that hash."""

    file: DataFile
    location: Path
    sha256: str
    verified: bool


def obtain(
    file: DataFile, raw: Path, data_dir: Path | None = None, recorded: str | None = None, report: Report | None = None
) -> RawFile:
    """Find `file` in `data_dir`, else in `raw`, else download it into `raw`; the first copy found must be right.

    A file of absolute path, or a folder, is somebody's own: it is read where it lies.

    Args:
        recorded: the hash of an earlier fetch, which stands in for the one that data.lock leaves open.

    Raises:
        DataError: the file is nowhere, damaged, or has another content; or the disk is full.
    """
    if Path(file.path).is_absolute():
        return _own(file)
    expected = file.sha256 or recorded
    kept = raw / Path(file.path).name
    again = "; or write the sha256 that was found into data.lock, which names its runs anew" if not file.sha256 else ""
    if data_dir is not None:
        for name in _packed_or_not(file.path):
            if (data_dir / name).is_file():
                return _verified(file, data_dir / name, expected, f"replace it, or remove it to download it{again}")
    if kept.is_file():
        return _verified(file, kept, expected, f"delete it: the next fetch downloads it again{again}")
    problems: list[str] = []
    for url in file.urls:
        try:
            if not on_the_network(url):
                return _verified(file, _in_package(url), expected, f"install the pinned version of the package{again}")
            return _download(file, url, kept, expected, report or _to_stderr)
        except (OSError, http.client.HTTPException, DataError) as error:
            if full_disk(error):
                kept.with_name(kept.name + ".part").unlink(missing_ok=True)
                raise DataError(disk_is_full(raw)) from None
            problems.append(f"{url}: {error}")
    looked = f"looked for {data_dir / file.path}" if data_dir else "no data folder is set"
    tried = "".join(f"\n  tried {problem}" for problem in problems) or "\n  data.lock has no URL for it"
    raise DataError(
        f"{file.path}: this data file is missing and could not be downloaded; {looked}{tried}\n  remedy: {advice(file)}"
    )


def is_there(file: DataFile, raw: Path, data_dir: Path | None = None) -> bool:
    """Whether a copy is there, whatever its content: in `data_dir`, in `raw` or in an installed package."""
    places = [raw / Path(file.path).name, *(data_dir / name for name in _packed_or_not(file.path) if data_dir)]
    return any(path.is_file() for path in places) or any(map(_is_in_package, file.urls))


def on_the_network(url: str) -> bool:
    return not url.startswith(PACKAGE)


def advice(file: DataFile) -> str:
    """What to do about a file that is nowhere."""
    return (
        f"put {' or '.join(_packed_or_not(file.path))} into a folder, "
        "and name that folder by FLORAL_DATA, --data-dir or data_dir"
    )


def unpacked(path: Path) -> io.BufferedIOBase:
    """Open a raw file for reading its content, gunzipped where its first bytes say so (names lie: browsers unpack)."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def content(path: Path) -> bytes:
    """The unpacked content of a raw file.

    Raises:
        DataError: the gzip stream is truncated or damaged.
    """
    try:
        with unpacked(path) as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_damaged(path, error)) from None


def content_sha256(path: Path) -> str:
    """The sha256 of a raw file's unpacked content; raises like `content`."""
    try:
        with unpacked(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_damaged(path, error)) from None


def full_disk(error: BaseException) -> bool:
    """Whether an operation failed because the disk or the quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_is_full(folder: Path) -> str:
    """The message for a full disk: names the folder and the remedy."""
    return f"{folder}: the disk is full, nothing was written; free space, or set FLORAL_RESULTS to another disk"


def _verified(file: DataFile, location: Path, expected: str | None, remedy: str, name: str = "") -> RawFile:
    found = content_sha256(location)
    if expected is not None and found != expected:
        promise = "data.lock promises" if file.sha256 else "the first fetch recorded"
        raise DataError(
            f"{name or location}: the content of {file.path} is not the accepted one\n"
            f"  expected sha256 {expected} ({promise} it)\n"
            f"  found    sha256 {found} (of the unpacked content)\n"
            f"  remedy: {remedy}"
        )
    return RawFile(file=file, location=location, sha256=found, verified=file.sha256 is not None)


def _own(file: DataFile) -> RawFile:
    location = Path(file.path)
    try:
        found = files.content_sha256(location)
    except OSError as error:
        raise DataError(
            f"{error.filename or location}: this file of your own data cannot be read: {error.strerror}\n"
            f"  remedy: {data_sets.CUSTOM_ADVICE}"
        ) from None
    if found != file.sha256:
        raise DataError(f"{location}: these data have changed since this command began; call it again")
    return RawFile(file=file, location=location, sha256=found, verified=True)


def _download(file: DataFile, url: str, kept: Path, expected: str | None, report: Report) -> RawFile:
    """Fetch `url` into `<kept>.part`, on top of what an earlier call left there, and rename it once it is verified."""
    part = kept.with_name(kept.name + ".part")
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
            # An inherited part may come from another mirror, whose gzip wrapping differs: once more, from the start.
            if not inherited:
                raise
            inherited = False
        except (OSError, http.client.HTTPException) as error:
            if full_disk(error) or _size(part) <= before:
                raise
            report(f"{url}: {error}; resuming at {_size(part):,} bytes")
    part.replace(kept)
    return RawFile(file=file, location=kept, sha256=raw.sha256, verified=raw.verified)


def _transfer(url: str, part: Path, report: Report) -> None:
    """Append the rest of `url` to `part`; raises OSError or HTTPException where the connection ends early."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # `part` is whole already, or too long: its hash decides
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        done, shown = start, -1
        with part.open("ab" if start else "wb") as stream:
            while block := response.read(BLOCK):
                stream.write(block)
                done += len(block)
                tenths = 10 * done // total if total else done // REPORT_EVERY
                if tenths > shown:
                    shown = tenths
                    report(f"{url}: {done:,} of {f'{total:,}' if total else 'unknown'} bytes")
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _in_package(url: str) -> Path:
    """The file behind package:<package>/<path>, found without importing the package."""
    package, _, path = url.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the Python package {package} is not installed")
    location = Path(spec.submodule_search_locations[0]) / path
    if not location.is_file():
        raise DataError(f"the installed {package} has no file {path}")
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
    return f"{path}: this gzip file is truncated or damaged ({error}); remedy: replace it by a whole copy"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

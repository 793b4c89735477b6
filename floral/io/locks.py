"""One process at a time, or as many as have room: an orphan of a killed Snakemake may still be at work beside the next
call. All locks are the system's, which frees them when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PATIENCE = 0.5
"""Seconds between two looks at places that were all taken."""


@contextmanager
def held(lock: Path, doing: str) -> Iterator[None]:
    """Hold the lock file; a second process says who is `doing` it and waits. The lock dies with its process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{lock.parent}: {_read_holder(file)} is {doing}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        _write_holder(file)
        yield


def hold_until_exit(lock: Path) -> str | None:
    """Lock the file until this process ends; if another process holds it, return that process in words instead."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            return _read_holder(file)
    _write_holder(file)
    HELD_UNTIL_EXIT.append(file)
    return None


HELD_UNTIL_EXIT: list[IO[str]] = []
"""Open lock files; closing one frees its lock."""


def _read_holder(file: IO[str]) -> str:
    """The process that holds the lock file, in words."""
    file.seek(0)
    return file.read().strip() or "another process"


def _write_holder(file: IO[str]) -> None:
    """Write this process into its lock file."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()


def busy(lock: Path) -> bool:
    """Whether some process holds the lock file now."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def leased(devices: Sequence[str], places: int, folder: Path) -> Iterator[int]:
    """Hold one of the `places` on one of the `devices`, and get the device's index; wait while all are taken.

    Every device gets its first run before one gets its second. The folder lies on this machine's own disk.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    said = False
    while (found := take_place(devices, places, folder)) is None:
        if not said:
            print(f"{folder}: all places are taken ({len(devices)} GPUs, {places} runs on each); waiting", flush=True)
            said = True
        time.sleep(PATIENCE)
    index, descriptor = found
    try:
        yield index
    finally:
        os.close(descriptor)


def take_place(devices: Sequence[str], places: int, folder: Path) -> tuple[int, int] | None:
    """Lock the first place that is free: its device's index, and the open file that holds it; None if there is none."""
    for place in range(places):
        for index, device in enumerate(devices):
            descriptor = os.open(folder / f"{device}-{place}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            return index, descriptor
    return None

"""Locks between processes: one process at a time, or a limited number of processes per GPU.

They are needed because a child process of a killed Snakemake may still run beside the next call. The operating system
frees a lock when its process ends, also when the process is killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

POLL_INTERVAL_S = 0.5
"""Time in seconds between two attempts to take a place."""


@contextmanager
def held(lock: Path, doing: str) -> Iterator[None]:
    """Hold the lock file during the block; wait if another process holds it.

    While waiting, a message names the other process and what it is `doing`.
    """
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
    """Lock the file until this process ends; returns None, or the name of the process that holds the lock already."""
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
    """The name of the process that holds the lock file."""
    file.seek(0)
    return file.read().strip() or "another process"


def _write_holder(file: IO[str]) -> None:
    """Write the name of this process into its lock file."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()


def busy(lock: Path) -> bool:
    """Whether a process holds the lock file now."""
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
    """Take one of the `places` on one of the `devices` during the block; yields the device's index.

    It waits while all places are taken. Each device gets a first run before any device gets a second run. The lock
    files lie in `folder`, which must be on a local disk.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    has_printed = False
    while (place := take_place(devices, places, folder)) is None:
        if not has_printed:
            print(f"{folder}: all places are taken ({len(devices)} GPUs, {places} runs on each); waiting", flush=True)
            has_printed = True
        time.sleep(POLL_INTERVAL_S)
    index, descriptor = place
    try:
        yield index
    finally:
        os.close(descriptor)


def take_place(devices: Sequence[str], places: int, folder: Path) -> tuple[int, int] | None:
    """Lock the first free place; returns its device's index and the open lock file, or None if all are taken."""
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

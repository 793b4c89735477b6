"""Functions for lock files. A lock lets only one process work at a time, or a limited number of processes per GPU.

Locks are needed because a job of a killed Snakemake may still run when Snakemake is started again. The operating system
releases a lock when the process that holds the lock ends, also when the process is killed.
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
"""Time in seconds between two attempts to get a place on a GPU."""


@contextmanager
def held(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock during the `with` block. If another process holds the lock, wait until that process releases it.

    While the function waits, a message names the other process and what it does: "process 12 on <host> is <doing>".
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
    """Hold a lock until this process ends, and return None.

    If another process holds the lock, return the name of that process without waiting.
    """
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


def share_until_exit(lock: Path) -> None:
    """Hold a lock until this process ends, together with other processes that share it.

    If a process holds the lock alone, print a message and wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{lock.parent}: another process changes this folder; waiting for it", flush=True)
        fcntl.flock(file, fcntl.LOCK_SH)
    HELD_UNTIL_EXIT.append(file)


HELD_UNTIL_EXIT: list[IO[str]] = []
"""The open lock files of this process. Closing a file would release its lock."""


def _read_holder(file: IO[str]) -> str:
    """Return the name of the process that holds the lock. That process has written it into the lock file."""
    file.seek(0)
    return file.read().strip() or "another process"


def _write_holder(file: IO[str]) -> None:
    """Write the process number (PID) of this process and the name of the machine into the lock file."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()


@contextmanager
def exclusively(lock: Path) -> Iterator[bool]:
    """Hold a lock during the `with` block, and yield True. If other processes hold or share it, yield False."""
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def busy(lock: Path) -> bool:
    """Return whether a process holds the lock at this moment."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def leased(devices: Sequence[str], places: int, folder: Path) -> Iterator[int]:
    """Hold a place on a GPU during the `with` block, and yield the index of this GPU in `devices`.

    Each GPU has `places` places, one for each run that may use it at the same time. If all places are taken, the
    function waits. A free GPU is taken before a GPU that already has a run. The lock files are in `folder`, which must
    be on a local disk.

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
    """Lock the first free place on a GPU. Return None if all places are taken.

    Otherwise return the index of the GPU in `devices` and the descriptor of the open lock file.
    """
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

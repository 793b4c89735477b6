"""Settings of a process that computes: number of threads, denormal (extremely small) numbers, and freed memory.

The module imports torch only inside its functions, so that the command line can set environment variables before torch
is imported.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("OMP", "MKL", "OPENBLAS", "GOTO", "NUMEXPR")
"""Libraries that read <name>_NUM_THREADS once, when they are imported."""


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use. A scheduler may allow only some of the cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library_threads(threads: int) -> dict[str, str]:
    """Return the environment variables that limit the threads of numerical libraries."""
    return {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}


def set_library_threads(threads: int) -> None:
    """Limit the threads of numerical libraries in this process; call it before torch and numpy are imported."""
    os.environ.update(library_threads(threads))


def set_threads(threads: int) -> None:
    """Set the number of threads of a tensor operation, and replace denormal (extremely small) numbers by zero.

    Both settings apply to the operations of the Python thread that calls this function. The library MKL is an
    exception: in every Python thread, it uses the number that was set last.
    """
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


@contextmanager
def operation_threads(threads: int | None = None) -> Iterator[None]:
    """Set the number of threads of a tensor operation in a `with` block, and restore the old number afterwards.

    If `threads` is None, the block starts with the old number. Even then, the old number is restored at the end,
    because the block itself may change the number.
    """
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)


def configure_process(threads: int) -> None:
    """Apply the settings of every process that trains: set the number of threads, and keep freed memory for reuse."""
    set_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the C library glibc keep large blocks of memory after a round frees them, for use in the next round.

    The buffers of all rounds have the same sizes. Without this setting, each round requests its memory from the kernel
    again, page by page. This took up to half of the time of a round. The function does nothing if the C library does
    not have this setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)

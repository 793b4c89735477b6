"""Settings of a process that computes: threads, denormal numbers, freed memory.

The module imports torch only inside its functions, so the command line can set environment variables before torch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("OMP", "MKL", "OPENBLAS", "GOTO", "NUMEXPR")
"""Libraries that read <name>_NUM_THREADS once, when they are imported."""


def library_threads(threads: int) -> dict[str, str]:
    """Environment variables that limit the threads of numerical libraries."""
    return {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}


def set_library_threads(threads: int) -> None:
    """Limit the threads of numerical libraries in this process; call it before torch and numpy are imported."""
    os.environ.update(library_threads(threads))


def set_threads(threads: int) -> None:
    """Set the threads inside one tensor operation, and flush denormal numbers to zero.

    Both hold for operations of the calling Python thread. MKL's operations follow the last call of any thread.
    """
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


@contextmanager
def operation_threads(threads: int | None = None) -> Iterator[None]:
    """Restore the number of threads inside tensor operations after the block; `threads` sets it for the block."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)


def configure_process(threads: int) -> None:
    """Apply the settings of every process that trains: threads of an operation, and memory kept for the next round."""
    set_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks of memory for the next round, whose buffers have the same sizes.

    Fetching them anew from the kernel, page by page, took up to half of a round. Other C libraries lack this option.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)

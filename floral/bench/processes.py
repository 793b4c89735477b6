"""Run each measurement in a new process, so that memory, threads and caches of earlier ones do not change it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def in_new_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Compute measure(*arguments) in a new process, and return the result.

    An error of `measure` is raised in the present process.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def memory_bytes(kind: str) -> int:
    """Return how many bytes of memory this process uses, read from /proc/self/status.

    `kind` is a key of this file: RssAnon (memory of the process itself), RssFile (memory-mapped files), VmRSS (both
    together) or VmHWM (the peak of VmRSS).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024

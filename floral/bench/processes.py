"""Run each measurement in a new process, without memory, threads or caches of earlier measurements."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def in_new_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Return measure(*arguments), computed in a new process. Its errors are raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def memory_bytes(kind: str) -> int:
    """Bytes of this process's memory, read from /proc/self/status.

    `kind` is a key there: RssAnon (its own resident memory), RssFile (mapped files), VmRSS (both), VmHWM (peak).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024

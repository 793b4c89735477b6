"""Each measurement in a process of its own: none finds the memory, threads or caches that another one left."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def in_own_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """measure(*arguments), in a new process; its errors are raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()

"""Describe executions in words. An execution is how a run was computed, the key `execution` of costs.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def executions(of_runs: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the executions of runs as words → number of runs. The execution with most runs is first."""
    counts = Counter(in_words(execution) for execution in of_runs)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def in_words(execution: Mapping[str, Any]) -> str:
    """Return the backend, the device, the precision, the threads and the workers of an execution in words.

    Runs of earlier versions have no precision, no threads or no workers.
    """
    if execution["backend"] == "none":
        return "no training"
    precision = execution.get("precision") or "fp32"
    products = "" if precision == "fp32" else f" with products in {precision}"
    numbers = {word: execution.get(f"{word}s") or 1 for word in ("thread", "worker")}
    parts = [f"{number} {word}s" for word, number in numbers.items() if number > 1]
    return f"{execution['backend']} on {execution['device']}{products}, {' and '.join(parts) or '1 thread'}"

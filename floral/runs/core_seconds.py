"""The CPU time of runs by part, the key `core_seconds` of costs.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

PARTS = {
    "start": "start of the processes",
    "data": "data and method",
    "trials": "trials of executions",
    "train": "training",
    "evaluate": "evaluation",
    "write": "writing",
}
"""Key → words. `data` reads the data and makes the method; `trials` measure which execution is the fastest."""


def core_seconds(folders: Iterable[Path]) -> dict[str, float]:
    """Return the CPU time in seconds of the finished runs in these folders, by part, summed over the runs.

    The result has the keys of PARTS, "total", and "runs", the number of counted runs. Runs of an earlier version have
    no such times and are not counted.
    """
    sums = dict.fromkeys((*PARTS, "total", "runs"), 0.0)
    for folder in folders:
        # A missing or damaged file counts nothing here: the estimate of the time left names it.
        with suppress(OSError, ValueError, KeyError, TypeError):
            seconds = json.loads((folder / "costs.json").read_text(encoding="utf-8"))["core_seconds"]
            spent = {part: float(seconds[part]) for part in (*PARTS, "total")} | {"runs": 1}
            sums = {key: round(sums[key] + spent[key], 2) for key in sums}
    return sums


def in_words(seconds: Mapping[str, float]) -> str:
    """Return the parts and their CPU times in words, the largest first."""
    total = sum(seconds[part] for part in PARTS)
    parts = sorted(PARTS, key=lambda part: -seconds[part])
    shares = {part: f" ({seconds[part] / total:.0%})" if total else "" for part in parts}
    return ", ".join(f"{PARTS[part]} {seconds[part]:.1f}{shares[part]}" for part in parts)

"""The rounds that a run has evaluated, as they come: small files which others read while it trains.

segments/0000.jsonl, 0001.jsonl …, one for each process that has worked on the run, a line for each evaluated round:

    {"round": 20, "time": 1767322805000, "metrics": [["test", "accuracy", 0.91], …]}    (milliseconds since 1970)

A kill leaves at most a half-written last line, and a resumed run says those rounds again that its checkpoint did not
have. So a reader takes whole lines only, and of each round the first. metrics.parquet remains the truth.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = "segments"


@dataclass(frozen=True)
class Evaluated:
    """One evaluated round: when (milliseconds since 1970), and (split, metric, value) of every finite value."""

    round: int
    time: int
    metrics: tuple[tuple[str, str, float], ...]


def new(folder: Path) -> Path:
    """The segment of a process that begins or resumes the run: no line of it can follow a half-written one."""
    return folder / FOLDER / f"{len(_segments(folder)):04d}.jsonl"


def append(segment: Path, round: int, metrics: Iterable[tuple[str, str, float]]) -> None:
    """Add a round in one write."""
    finite = [row for row in metrics if math.isfinite(row[2])]
    line = json.dumps({"round": round, "time": time.time_ns() // 1_000_000, "metrics": finite})
    segment.parent.mkdir(parents=True, exist_ok=True)
    with segment.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def read(folder: Path) -> list[Evaluated]:
    """Every round that the run has evaluated so far, once, in order."""
    found: dict[int, Evaluated] = {}
    for segment in _segments(folder):
        for line in segment.read_bytes().splitlines(keepends=True):
            if (evaluated := _parsed(line)) is not None:
                found.setdefault(evaluated.round, evaluated)
    return [found[round] for round in sorted(found)]


def size(folder: Path) -> int:
    """Bytes of all segments: as long as it stays the same there is nothing new to read."""
    return sum(segment.stat().st_size for segment in _segments(folder))


def last_written(folder: Path) -> float | None:
    """When the newest segment grew, in seconds since 1970; None if there is none."""
    return max((segment.stat().st_mtime for segment in _segments(folder)), default=None)


def _segments(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*.jsonl"))


def _parsed(line: bytes) -> Evaluated | None:
    """A line's round; None for half a line, or for one that a power cut has damaged: metrics.parquet will have it."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
        if value is None:
            return None
        return Evaluated(value["round"], value["time"], tuple((s, m, float(v)) for s, m, v in value["metrics"]))
    except (ValueError, KeyError, TypeError):
        return None

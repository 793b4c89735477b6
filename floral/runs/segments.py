"""Store the evaluated rounds of a run in small files (segments), which other processes read while the run trains.

Every process that works on the run writes one file: segments/0000.jsonl, 0001.jsonl, and so on. The file has one line
for each evaluated round (`time` is in milliseconds since 1970):

    {"round": 20, "time": 1767322805000, "metrics": [["test", "accuracy", 0.91], …]}

A killed process leaves at most one incomplete last line. A resumed run repeats the rounds after its checkpoint. So a
reader uses complete lines only, and of each round only the first line. The final results of the run are not here but in
metrics.parquet.
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
    """An evaluated round: its number, its time (milliseconds since 1970), and its metrics as (split, metric, value).

    Values that are NaN or infinite are left out.
    """

    round: int
    time: int
    metrics: tuple[tuple[str, str, float], ...]


def new(folder: Path) -> Path:
    """Return the path of a new segment file, for a process that starts or resumes the run."""
    return folder / FOLDER / f"{len(_segments(folder)):04d}.jsonl"


def append(segment: Path, round: int, metrics: Iterable[tuple[str, str, float]]) -> None:
    """Append an evaluated round to a segment file as one line, which is written in a single operation."""
    finite = [row for row in metrics if math.isfinite(row[2])]
    line = json.dumps({"round": round, "time": time.time_ns() // 1_000_000, "metrics": finite})
    segment.parent.mkdir(parents=True, exist_ok=True)
    with segment.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def read(folder: Path) -> list[Evaluated]:
    """Return all rounds that the run has evaluated so far, in order and without duplicates."""
    by_round: dict[int, Evaluated] = {}
    for segment in _segments(folder):
        for line in segment.read_bytes().splitlines(keepends=True):
            if (evaluated := _parse(line)) is not None:
                by_round.setdefault(evaluated.round, evaluated)
    return [by_round[round] for round in sorted(by_round)]


def size(folder: Path) -> int:
    """Return the total size of all segment files in bytes. The size grows with every evaluated round."""
    return sum(segment.stat().st_size for segment in _segments(folder))


def last_written(folder: Path) -> float | None:
    """Return when a segment file was last written, in seconds since 1970; None if there is no segment file."""
    return max((segment.stat().st_mtime for segment in _segments(folder)), default=None)


def _segments(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*.jsonl"))


def _parse(line: bytes) -> Evaluated | None:
    """Return the evaluated round that a line describes; None if the line is incomplete or damaged."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
        if value is None:
            return None
        return Evaluated(value["round"], value["time"], tuple((s, m, float(v)) for s, m, v in value["metrics"]))
    except (ValueError, KeyError, TypeError):
        return None

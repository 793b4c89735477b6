"""The state of a run's folder: finished, running or failed, and why it failed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from floral.io.locks import busy
from floral.runs import segments

LOCK = ".lock"
"""The file in a run's folder that its process holds from its first to its last moment."""

FAILURE = ("reason", "exception", "traceback", "hint", "time")
"""The keys of failure.json."""

STARTED = (LOCK, "run.yaml", "checkpoint/last.safetensors")
"""Whatever of these is there, a process has worked on this run."""

SILENT = {
    **dict.fromkeys(FAILURE),
    "reason": "stopped without a word: killed, out of memory or power",
    "hint": "the same command continues",
}


FRESH = 180.0
"""Seconds for which a segment that has grown shows that a process on another machine is at work."""


def is_finished(folder: Path) -> bool:
    """Whether the run has its result: summary.json is written last, for diverged runs too."""
    return (folder / "summary.json").exists()


def running(folder: Path) -> bool:
    """Whether a process is making this run now: it holds the run's lock or, where the lock is another machine's and
    the file system may not pass it on, it has said a round of late."""
    lock = folder / LOCK
    if busy(lock):
        return True
    if not lock.exists() or lock.read_text().rpartition(" on ")[2] == os.uname().nodename:
        return False
    ended = is_finished(folder) or (folder / "failure.json").exists()
    said = segments.last_written(folder)
    return not ended and said is not None and time.time() - said < FRESH


def failure(folder: Path) -> dict[str, Any] | None:
    """All of FAILURE for a run that has failed; None for one that is finished, not started or running."""
    if running(folder) or is_finished(folder):
        return None
    if (folder / "failure.json").exists():
        return read(folder / "failure.json")
    return dict(SILENT) if any((folder / mark).exists() for mark in STARTED) else None


def read(path: Path) -> dict[str, Any]:
    """A failed run's failure.json with all of FAILURE; what it lacks is None, and its reason says so.

    Whatever stands in it must not take the report down.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError) as error:
        return {**dict.fromkeys(FAILURE), "reason": f"its {path.name} is unreadable ({error})"}
    lacking = ", ".join(key for key in FAILURE if key not in found)
    reason = found.get("reason") or "no reason was recorded"
    found["reason"] = f"{reason} ({path.name} lacks {lacking})" if lacking else reason
    return {**dict.fromkeys(FAILURE), **found}


def failed_since(folder: Path, started: float) -> bool:
    """Whether the run was begun after that moment (seconds since 1970) and has failed."""
    marks = [path for path in (folder / "failure.json", folder / LOCK) if path.exists()]
    return any(path.stat().st_mtime >= started for path in marks) and failure(folder) is not None


def one_line(found: dict[str, Any]) -> str:
    """The exception's first line, or the reason and what to do where there was no exception."""
    exception = str(found["exception"] or "").strip()
    return exception.splitlines()[0] if exception else "; ".join(filter(None, (found["reason"], found["hint"])))

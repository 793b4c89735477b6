"""The state of a run, read from its folder: finished, running or failed, and the reason of a failure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from floral.config.run import Run
from floral.io.locks import busy
from floral.runs import segments

LOCK = ".lock"
"""The file in a run's folder that its process locks while it works on the run."""

FAILURE = ("reason", "exception", "traceback", "hint", "time")
"""The keys of failure.json."""

STARTED = (LOCK, "run.yaml", "checkpoint/last.safetensors")
"""Each of these files shows that a process has worked on the run."""

KILLED = {
    **dict.fromkeys(FAILURE),
    "reason": "ended without a message: killed, out of memory, or power failure",
    "hint": "the same command continues",
}
"""The failure of a run whose process could not write failure.json."""


FRESH_SECONDS = 180.0
"""A run with a lock of another machine counts as running for so many seconds after its last evaluated round."""


def is_finished(folder: Path) -> bool:
    """Whether the run has its result: summary.json is written last, for diverged runs too."""
    return (folder / "summary.json").exists()


def running(folder: Path) -> bool:
    """Whether a process works on this run now.

    On this machine the run's lock decides. A file system may hide locks of other machines; such a run counts as running
    if it has evaluated a round in the last FRESH_SECONDS.
    """
    lock = folder / LOCK
    if busy(lock):
        return True
    if not lock.exists() or lock.read_text().rpartition(" on ")[2] == os.uname().nodename:
        return False
    ended = is_finished(folder) or (folder / "failure.json").exists()
    evaluated = segments.last_written(folder)
    return not ended and evaluated is not None and time.time() - evaluated < FRESH_SECONDS


def failure(folder: Path) -> dict[str, Any] | None:
    """The keys FAILURE of a failed run; None for one that is finished, running or not started."""
    if running(folder) or is_finished(folder):
        return None
    if (folder / "failure.json").exists():
        return read(folder / "failure.json")
    return dict(KILLED) if any((folder / name).exists() for name in STARTED) else None


def read(path: Path) -> dict[str, Any]:
    """Read failure.json; missing keys are None and named in the reason.

    An unreadable file raises nothing, so that the report of all other runs can be made.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError) as error:
        return {**dict.fromkeys(FAILURE), "reason": f"its {path.name} is unreadable ({error})"}
    missing = ", ".join(key for key in FAILURE if key not in values)
    reason = values.get("reason") or "no reason was recorded"
    values["reason"] = f"{reason} ({path.name} lacks {missing})" if missing else reason
    return {**dict.fromkeys(FAILURE), **values}


def failed_since(folder: Path, started: float) -> bool:
    """Whether the run was started after that time (seconds since 1970) and has failed."""
    files = [path for path in (folder / "failure.json", folder / LOCK) if path.exists()]
    return any(path.stat().st_mtime >= started for path in files) and failure(folder) is not None


def one_line(values: Mapping[str, Any]) -> str:
    """A failure in one line: the first line of the exception, or else the reason and the hint."""
    exception = str(values["exception"] or "").strip()
    return exception.splitlines()[0] if exception else "; ".join(filter(None, (values["reason"], values["hint"])))


def failure_lines(suites: Mapping[str, list[Run]], results: Path) -> list[str]:
    """One line for each failed run of these suites."""
    lines = []
    for run in {run.folder: run for runs in suites.values() for run in runs}.values():
        folder = results / run.folder
        if values := failure(folder):
            name = f"{run.task.name} {run.variant.name} seed {run.seed}"
            lines.append(f"failed: {name}: {one_line(values)} (floral show {folder})")
    return lines

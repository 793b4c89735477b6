"""Read the state of a run from its folder: finished, running, or failed with a reason."""

from __future__ import annotations

import json
import os
import shlex
import shutil
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
"""The keys of failure.json. A run that failed before it wrote run.yaml also has its values there, as `run`."""

STARTED = (LOCK, "run.yaml", "checkpoint/last.safetensors")
"""Each of these files, if not empty, shows that a process has started the run."""

SUBMITTING = ".slurm.lock"
"""The file in the results folder that Snakemake locks while it submits jobs to SLURM."""

IN_USE = ".snakemake.lock"
"""The file in the results folder that each call of Snakemake locks until it ends. Several calls share the lock."""

KILLED = {
    **dict.fromkeys(FAILURE),
    "reason": "ended without a message: killed, out of memory, or power failure",
    "hint": "the same command continues",
}
"""The failure of a run whose process could not write failure.json."""

DISK_FULL = KILLED | {
    "reason": "ended without a message; the disk is full, so that no reason could be written",
    "hint": "free space there; the same command continues",
}
"""The failure of such a run, if its disk has no space for failure.json now."""
MIN_FREE_BYTES = 1_000_000
"""A disk with less free space than this counts as full."""

FRESH_SECONDS = 180.0
"""A run with a lock of another machine counts as running for so many seconds after its last evaluated round."""


def is_finished(folder: Path) -> bool:
    """Return whether a run is finished, that is, whether its folder has summary.json.

    This file is written last, also for a diverged run.
    """
    return (folder / "summary.json").exists()


def running(folder: Path) -> bool:
    """Return whether a process is working on this run now.

    A process that works on a run locks the run's lock file. If the process is on this machine, the lock shows whether
    it still works. If it is on another machine, its lock may be invisible here. Then the run counts as running if it
    wrote a file in the last FRESH_SECONDS, and has neither finished nor written failure.json.
    """
    lock = folder / LOCK
    if busy(lock):
        return True
    holder = lock.read_text() if lock.exists() else ""
    if not holder or holder.rpartition(" on ")[2] == os.uname().nodename:
        return False
    ended = is_finished(folder) or (folder / "failure.json").exists()
    return not ended and _is_fresh(folder)


def _is_fresh(folder: Path) -> bool:
    """Return whether a file of this run was written in the last FRESH_SECONDS.

    A file that is dated further in the future was written by a machine with a wrong clock, and tells nothing.
    """
    return abs(time.time() - _last_sign_of_life(folder)) < FRESH_SECONDS


def _last_sign_of_life(folder: Path) -> float:
    """Return when a process last wrote a file of this unfinished run, in seconds since 1970; 0 if there is no file."""
    files = [folder / name for name in (*STARTED, "failure.json") if (folder / name).exists()]
    written = [path.stat().st_mtime for path in files]
    return max([*written, segments.last_written(folder) or 0.0], default=0.0)


def failure(folder: Path) -> dict[str, Any] | None:
    """Return why a run failed, as a dictionary with the keys of failure.json, such as "reason" and "hint".

    Return None if the run is finished, is running or has not started.
    """
    if running(folder) or is_finished(folder):
        return None
    if (folder / "failure.json").exists():
        return read(folder / "failure.json")
    started = any((folder / name).exists() and (folder / name).stat().st_size for name in STARTED)
    if not started:
        return None
    return dict(KILLED if shutil.disk_usage(folder).free >= MIN_FREE_BYTES else DISK_FULL)


def has_failed_for_good(run: Run, results: Path) -> bool:
    """Return whether a run failed more than FRESH_SECONDS ago, and no Snakemake is submitting jobs that may retry it.

    Such a Snakemake holds the lock SUBMITTING in the results folder. If it runs on another machine, its lock may be
    invisible here.
    """
    folder = results / run.folder
    return not _is_fresh(folder) and failure(folder) is not None and not busy(results / SUBMITTING)


def read(path: Path) -> dict[str, Any]:
    """Return the content of failure.json. A missing key gets the value None, and the reason names the missing key.

    An unreadable file raises no error, so that the report can still show all other runs.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("the content is not a mapping")
    except (OSError, ValueError) as error:
        return {**dict.fromkeys(FAILURE), "reason": f"{path.name} of this run is unreadable ({error})"}
    missing = ", ".join(key for key in FAILURE if key not in values)
    reason = values.get("reason") or "no reason was recorded"
    values["reason"] = f"{reason} ({path.name} lacks {missing})" if missing else reason
    return {**dict.fromkeys(FAILURE), **values}


def failed_since(folder: Path, started: float) -> bool:
    """Return whether a run was started after the time `started` (seconds since 1970) and then failed."""
    files = [path for path in (folder / "failure.json", folder / LOCK) if path.exists()]
    return any(path.stat().st_mtime >= started for path in files) and failure(folder) is not None


def one_line(values: Mapping[str, Any]) -> str:
    """Return a failure in one line: the first line of the exception.

    Without an exception, return the reason and the hint.
    """
    exception = str(values["exception"] or "").strip()
    return exception.splitlines()[0] if exception else "; ".join(filter(None, (values["reason"], values["hint"])))


def failure_lines(suites: Mapping[str, list[Run]], results: Path) -> list[str]:
    """Return one line for each failed run of these suites."""
    lines = []
    for run in {run.folder: run for runs in suites.values() for run in runs}.values():
        folder = results / run.folder
        if values := failure(folder):
            name = f"{run.task.name} {run.variant.name} seed {run.seed}"
            lines.append(f"failed: {name}: {one_line(values)} (floral show {shlex.quote(str(folder))})")
    return lines

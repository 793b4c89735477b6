"""Stage train: one run from its partition to its results, continued from where it stopped."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from floral.config import ConfigError, Run
from floral.stages import plan


def train(run: Run, results: Path, *, device: str, backend: str, threads: int, checkpoint_seconds: float) -> int:
    """Train a run, or say that it is finished; returns the exit code. Diverged is finished, failed is not.

    A run is finished when its summary.json is there: `done` is only the mark that Snakemake looks at.
    """
    folder = results / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        summary = finished(folder)
        if summary is None:
            (folder / "failure.json").unlink(missing_ok=True)
            try:
                from floral.stages.execute import execute

                summary = execute(run, results, device, backend, threads, checkpoint_seconds)
            except Exception as error:
                failed(folder, run, error)
                if isinstance(error, ConfigError):
                    raise
                return 1
        line = plan.progress_line(results, run, summary)
        (folder / "done").write_text(f"{summary['status']} {summary['hash8']} {summary['finished_at']}\n")
    print(line, flush=True)
    return 0


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder; a second process waits and says for whom. The lock dies with its process."""
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(
                f"{folder}: {file.read().strip() or 'another process'} is training this run; waiting for it", flush=True
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def failed(folder: Path, run: Run, error: Exception) -> None:
    """Leave the reason of a failure in failure.json and say it."""
    reason, hint = diagnosis(error)
    failure = {
        "reason": reason,
        "exception": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "hint": hint,
        "round": None,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not isinstance(error, ConfigError):  # its message is said by the command
        print(f"{run.task.name} {run.variant.name} seed {run.seed}: failed: {reason}: {error}\n  {hint}", flush=True)
    try:
        (folder / "failure.json").write_text(json.dumps(failure, indent=1))
    except OSError as full:
        print(f"{folder / 'failure.json'}: not written: {full}", flush=True)


def diagnosis(error: Exception) -> tuple[str, str]:
    """A short reason and what to do about it."""
    again = "the same command continues from the last checkpoint"
    match error:
        case ConfigError():
            return "mistake", "mend what the message names; the same command tries again"
        case MemoryError():
            return "out of memory", f"give the job more memory, or set `backend: loop`; {again}"
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk full", f"free space on the file system of the results; {again}"
        case RuntimeError() if "out of memory" in str(error) or "can't allocate memory" in str(error):
            return "out of memory", f"give the job more memory, or set `backend: loop`; {again}"
    return "exception", f"see the traceback in failure.json and log.txt; {again}"

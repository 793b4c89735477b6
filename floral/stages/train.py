"""Stage train: train one run, or continue it from its last checkpoint."""

from __future__ import annotations

import errno
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from floral.cluster import slurm
from floral.cluster.stops import Stopped, catch_signals
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.io.files import atomic
from floral.io.locks import held
from floral.runs import layout, reference
from floral.runs.state import LOCK
from floral.stages import progress_line

LOG = logging.getLogger("floral.train")


class RunFailed(Exception):
    """Error: a run ended by an error that is no mistake in the configuration. The message has a hint what to do."""

    def __init__(self, run: Run, error: Exception) -> None:
        reason, hint = diagnosis(error)
        name = f"{run.task.name} {run.variant.name} seed {run.seed}"
        super().__init__(f"{name}: failed: {reason}: {error}\n  {hint}")


def train(run: Run, results: Path, *, device: str, runs_per_gpu: int, **how: Any) -> int:
    """Train a run unless it is finished, print one line, and return the exit code: 0 if finished, 1 if failed.

    A diverged run counts as finished. The file summary.json marks a run as finished; the file `done` is only for
    Snakemake. On a GPU, at most `runs_per_gpu` runs train at the same time. The function passes the arguments `how` to
    `execute`.

    Raises:
        ConfigError: the configuration or an existing file cannot be used.
        Stopped: a signal asked the run to stop.
    """
    try:
        summary = complete(run, results, device=device, runs_per_gpu=runs_per_gpu, **how)
    except RunFailed as failure:
        print(failure, flush=True)
        return 1
    print(progress_line.progress_line(results, run, summary), flush=True)
    return 0


def complete(run: Run, results: Path, *, device: str, runs_per_gpu: int, **how: Any) -> dict[str, Any]:
    """Train a run unless it is finished, and return its summary. See `train` for the arguments.

    Raises:
        ConfigError: the configuration or an existing file cannot be used.
        Stopped: a signal asked the run to stop.
        RunFailed: another error ended the run. failure.json in its folder has the traceback.
    """
    folder = results / run.folder
    with held(folder / LOCK, "training this run"):
        summary = finished(folder)
        if summary is None:
            for old in ("failure.json", reference.RESTORED):
                (folder / old).unlink(missing_ok=True)
            slurm.record_start(folder)
            try:
                with logged(folder / "log.txt"):
                    if run.task.noop:
                        from floral.stages.noop import noop

                        summary = noop(run, results)
                    else:
                        from floral.cluster.gpus import hold_device
                        from floral.stages.execute import execute

                        with hold_device(device, runs_per_gpu) as resolved, catch_signals() as stop:
                            summary = execute(run, results, resolved, stop=stop, **how)
            except (ConfigError, KeyboardInterrupt) as error:  # `floral` prints these errors
                leave_reason(run, folder, error)
                raise
            except Exception as error:
                leave_reason(run, folder, error)
                raise RunFailed(run, error) from error
            slurm.record_end(folder, summary["status"])
        (folder / "done").write_text(f"{summary['status']} {summary['hash8']} {summary['finished_at']}\n")
    return summary


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append the log messages inside this context to a file. A resumed run continues the same file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None if the run is unfinished.

    Raises:
        ConfigError: summary.json is damaged.
    """
    path = folder / "summary.json"
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("the content is not a mapping")
    except ValueError as error:
        raise ConfigError(
            f"{path}: damaged ({error}); remove this file and repeat the command, which trains the run again "
            "(from its checkpoint, if there is one)"
        ) from None
    return summary


def leave_reason(run: Run, folder: Path, error: BaseException) -> None:
    """Write the reason of a failure to failure.json. In a SLURM job, also write it to the job's entry in jobs.json.

    A run that failed before it wrote run.yaml also has its values in failure.json, for `floral show`.
    """
    reason, hint = diagnosis(error)
    stopped = isinstance(error, KeyboardInterrupt)  # a traceback would not help
    failure: dict[str, Any] = {
        "reason": reason,
        "exception": "" if stopped else f"{type(error).__name__}: {error}",
        "traceback": "" if stopped else "".join(traceback.format_exception(error)),
        "hint": hint,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not (folder / "run.yaml").exists():
        failure["run"] = layout.values_of(run)
    try:
        atomic(folder / "failure.json", json.dumps(failure, indent=1).encode())
        slurm.record_end(folder, reason)
    except OSError as full:
        print(f"{folder / 'failure.json'}: not written: {full}", flush=True)


def diagnosis(error: BaseException) -> tuple[str, str]:
    """Return a short reason for an error, and a hint what to do about it."""
    again = "the same command continues from the last checkpoint"
    match error:
        case ConfigError():
            return "mistake", "correct what the message names; then repeat the same command"
        case Stopped() as stopped:
            return slurm.stop_reason(stopped.by), again
        case KeyboardInterrupt():
            return "interrupted", again
        case MemoryError():
            return "out of memory", f"give the job more memory, or set `backend: loop`; {again}"
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk full", f"free space on the file system of the results; {again}"
        case RuntimeError() if "CUDA out of memory" in str(error):
            return "out of GPU memory", f"let fewer runs share a GPU (`runs_per_gpu`), or set `backend: loop`; {again}"
        case RuntimeError() if "out of memory" in str(error) or "can't allocate memory" in str(error):
            return "out of memory", f"give the job more memory, or set `backend: loop`; {again}"
    return "exception", f"see the traceback in failure.json and log.txt; {again}"

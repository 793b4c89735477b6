"""What a run and SLURM have to say to each other: which job worked on it, why that ended, what the next one asks for.

Nothing here imports torch: Snakemake reads it for the DAG.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from floral.config.reading import ConfigError
from floral.config.settings import Slurm
from floral.io.files import atomic
from floral.runs.state import is_finished

JOBS = "jobs.json"
"""In a run's folder: every SLURM job that worked on it, in order, with the reason why it ended."""

WARNING = 60
"""Seconds before the end of its walltime at which SLURM warns a job with SIGUSR1."""
ANSWER = 10.0
"""Seconds that SLURM's commands may take."""
LEAST = 10
"""Minutes that a job asks for at least: reading files and starting takes its time on a busy cluster."""
MARGIN = 3.0
"""Times the expected seconds that a job asks for, as another node may be slower."""

TIMEOUT, MEMORY = "walltime", "out of memory"
"""The reasons after which a run asks for more: of that, and of nothing else."""
REASONS = {
    "TIMEOUT": TIMEOUT,
    "DEADLINE": TIMEOUT,
    "OUT_OF_MEMORY": MEMORY,
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
}
"""SLURM's state of a job that has ended → the reason of a run that could not leave one itself."""
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED")


# ---------------------------------------------------------------------------------- within a job


def begun(folder: Path) -> None:
    """Note that this job works on the run from now on. A job that appears twice was requeued by SLURM."""
    if (mine := os.environ.get("SLURM_JOB_ID")) is None:
        return
    jobs = read(folder)
    if jobs and jobs[-1]["job"] == mine:
        jobs[-1]["reason"] = "requeued"
    node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    write(folder, [*jobs, {"job": mine, "node": node, "began": time.time(), "reason": None}])


def ended(folder: Path, reason: str) -> None:
    """Note why this job's work on the run is over."""
    jobs = read(folder)
    if jobs and jobs[-1]["job"] == os.environ.get("SLURM_JOB_ID"):
        jobs[-1]["reason"] = reason
        write(folder, jobs)


def stopped(by: int) -> str:
    """Why a run of this job was asked to stop with that signal: "walltime", "preempted" or "interrupted".

    A job that was warned although it has time left is being preempted, and would end as one that failed: it is put
    back into the queue here. With SIGTERM SLURM ends the job itself, and knows whether to requeue it.
    """
    mine = os.environ.get("SLURM_JOB_ID")
    if mine is None or by == signal.SIGINT:
        return "interrupted"
    if seconds_left(mine) <= 1.5 * WARNING:
        return TIMEOUT
    if by != signal.SIGUSR1:
        return "interrupted"
    return "interrupted" if ask("scontrol", "requeue", mine) is None else "preempted"


def seconds_left(job: str) -> float:
    """Of the job's walltime: none where SLURM says something that is no time, as it does when the limit is over."""
    said = (ask("squeue", "--noheader", "--job", job, "--format", "%L") or "").strip()
    if said in ("UNLIMITED", "NOT_SET", ""):
        return math.inf
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", said)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# ---------------------------------------------------------------------------------- where Snakemake runs


def memory(folder: Path, slurm: Slurm, measured: int | None) -> int:
    """MB that a run's next job asks for: half more than a finished run of its task took, and twice as much after each
    time that it was not enough."""
    usual = slurm.memory if measured is None else max(500, math.ceil(1.5 * measured / 1e6))
    return usual << reasons(folder)[MEMORY]


def minutes(folder: Path, slurm: Slurm, seconds: float) -> int:
    """Minutes that it asks for: MARGIN times the run's expected seconds, and twice as much after each time that it was
    not enough; at most `walltime`."""
    return min(max(LEAST, math.ceil(MARGIN * seconds / 60)) << reasons(folder)[TIMEOUT], slurm.walltime)


def reasons(folder: Path) -> Counter[str]:
    """How often each reason ended a job that worked on this run. Where the last one could leave none, SLURM is asked,
    and what it says is written into jobs.json and failure.json."""
    jobs = read(folder)
    last = jobs[-1] if jobs else None
    if last is not None and last["reason"] is None and last["job"] != os.environ.get("SLURM_JOB_ID"):
        state = state_of(last["job"])
        if state not in ALIVE:
            last["reason"] = REASONS.get(state or "", "killed")
            write(folder, jobs)
            leave_reason(folder, last, state)
    return Counter(one["reason"] for one in jobs)


def state_of(job: str) -> str | None:
    """SLURM's state of a job, from its controller or, when that has forgotten it, from its accounting."""
    said = ask("scontrol", "show", "job", "--oneliner", job) or ""
    if found := re.search(r"\bJobState=(\w+)", said):
        return found[1]
    words = (ask("sacct", "-nXP", "-j", job, "-o", "State") or "").split()
    return words[0] if words else None


def leave_reason(folder: Path, last: dict[str, Any], state: str | None) -> None:
    """Write the failure.json that a killed run could not write."""
    path = folder / "failure.json"
    if path.exists() or is_finished(folder):
        return
    said = f"SLURM's job {last['job']} on {last['node']} ended as {state or 'unknown'}, and the run left no word"
    failure = {
        "reason": last["reason"],
        "exception": "",
        "traceback": "",
        "hint": f"{said}; the same command continues from the last checkpoint",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }
    atomic(path, json.dumps(failure, indent=1).encode())


# ---------------------------------------------------------------------------------- before anything is submitted


def check(slurm: Slurm) -> None:
    """Whether this cluster would take our jobs.

    Raises:
        ConfigError: no SLURM here, no controller that answers, no such partition, an account that is refused.
    """
    elsewhere = "run this on the cluster's login node, or use --profile local"
    if missing := [name for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo") if shutil.which(name) is None]:
        raise ConfigError(f"--profile slurm: no SLURM on this machine ({', '.join(missing)} not found): {elsewhere}")
    told = run("sinfo", "--noheader", "--format", "%R")
    if told.returncode:
        raise ConfigError(
            f"--profile slurm: SLURM's controller does not answer ({last_line(told.stderr)}): "
            f"try `scontrol ping`, ask the administrators, or {elsewhere}"
        )
    known = sorted(set(told.stdout.split()))
    if slurm.partition is not None and slurm.partition not in known:
        raise ConfigError(
            f"slurm: partition: unknown partition {slurm.partition!r}; this cluster has {', '.join(known)} "
            '(config/config.yaml, or --config slurm="{partition: NAME}")'
        )
    options = [f"--partition={slurm.partition}"] if slurm.partition else []
    options += [f"--account={slurm.account}"] if slurm.account else []
    told = run("sbatch", "--test-only", *options, "--time=1", "--mem=100", "--wrap=true")
    if told.returncode:
        raise ConfigError(
            f"slurm: SLURM refuses a job of account {slurm.account or '(default)'} in partition "
            f"{slurm.partition or '(default)'}: {last_line(told.stderr)}; "
            "set `account` and `partition` under `slurm:` in config/config.yaml (`sacctmgr show user $USER -s` or the "
            "administrators know which you may use)"
        )


def only_here(results: Path) -> None:
    """Hold the results against a second call that would submit everything twice, until this process ends: however it
    ends, nothing is left to be removed by hand.

    Raises:
        ConfigError: another call is at work.
    """
    path = results / ".slurm.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ConfigError(
            f"{path}: {holder} is submitting the jobs of these results; wait for it or end it "
            "(if that machine is gone, remove the file)"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {os.uname().nodename}")
    lock.flush()
    HELD.append(lock)


HELD: list[Any] = []
"""Open for as long as the process lives."""


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1]


def ask(*command: str) -> str | None:
    """What a command of SLURM's says; None where it fails."""
    told = run(*command)
    return None if told.returncode else told.stdout


def run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: no answer within {ANSWER:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


# ---------------------------------------------------------------------------------- jobs.json


def read(folder: Path) -> list[dict[str, Any]]:
    """The jobs that worked on a run; none where it was never in SLURM.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / JOBS
    try:
        jobs = json.loads(path.read_text(encoding="utf-8"))
        return [{key: one[key] for key in ("job", "node", "began", "reason")} for one in jobs]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged ({error!r}); remove it: it is only a record") from error


def write(folder: Path, jobs: list[dict[str, Any]]) -> None:
    atomic(folder / JOBS, json.dumps(jobs, indent=1).encode())

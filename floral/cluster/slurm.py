"""Record the SLURM jobs of a run and why they ended; compute the memory and time that the next job requests.

Snakemake calls this module for every job that it plans. The module does not import torch, so that the calls are fast.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from floral.config.reading import ConfigError
from floral.config.settings import Slurm
from floral.io.files import atomic
from floral.io.locks import hold_until_exit
from floral.runs.state import SUBMITTING, is_finished

JOBS = "jobs.json"
"""The file in a run's folder that lists its SLURM jobs in order, each with the reason why it ended."""

WARNING_SECONDS = 60
"""SLURM sends SIGUSR1 to a job this many seconds before the end of its walltime."""
COMMAND_TIMEOUT_SECONDS = 10.0
"""Timeout in seconds of a SLURM command."""
MIN_MINUTES = 10
"""A job requests at least this many minutes, because starting and reading files is slow on a busy cluster."""
TIME_FACTOR = 3.0
"""A job requests this many times the expected time, because another node may be slower."""

TIMEOUT, MEMORY = "walltime", "out of memory"
"""After these reasons the next job requests more time or more memory, respectively."""
REASONS = {
    "TIMEOUT": TIMEOUT,
    "DEADLINE": TIMEOUT,
    "OUT_OF_MEMORY": MEMORY,
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
}
"""SLURM's state of an ended job → the reason, for a run that could not write one itself."""
NOT_ENDED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED")


# --------------------------------------------------------------------------------- inside a job


def record_start(folder: Path) -> None:
    """Record in the run's file jobs.json that this SLURM job starts to work on the run. Outside SLURM, do nothing.

    If the last entry of the file already belongs to this job, SLURM has requeued the job. The last entry then gets the
    reason "requeued", and a new entry follows.
    """
    if (this_job := os.environ.get("SLURM_JOB_ID")) is None:
        return
    jobs = read_jobs(folder)
    if jobs and jobs[-1]["job"] == this_job:
        jobs[-1]["reason"] = "requeued"
    node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    write_jobs(folder, [*jobs, {"job": this_job, "node": node, "began": time.time(), "reason": None}])


def record_end(folder: Path, reason: str) -> None:
    """Record in jobs.json why this SLURM job stopped working on the run."""
    jobs = read_jobs(folder)
    if jobs and jobs[-1]["job"] == os.environ.get("SLURM_JOB_ID"):
        jobs[-1]["reason"] = reason
        write_jobs(folder, jobs)


def stop_reason(by: int) -> str:
    """Return why this job was stopped by the signal `by`: "walltime", "preempted" or "interrupted".

    "walltime" means that the job has nearly used its time. "preempted" means that SLURM sent SIGUSR1 although much time
    is left: it needs the node for another job. This function then requeues the job, because SLURM would count it as
    failed. "interrupted" is the reason in all other cases, for example after Ctrl-C or outside SLURM.
    """
    this_job = os.environ.get("SLURM_JOB_ID")
    if this_job is None or by == signal.SIGINT:
        return "interrupted"
    if seconds_left(this_job) <= 1.5 * WARNING_SECONDS:
        return TIMEOUT
    if by != signal.SIGUSR1:
        # After SIGTERM, SLURM ends the job itself, and requeues it if the cluster is set up to do so.
        return "interrupted"
    return "interrupted" if output_of("scontrol", "requeue", this_job) is None else "preempted"


def seconds_left(job: str) -> float:
    """Return the remaining walltime of a job in seconds.

    The result is infinite if the job has no limit or SLURM does not answer, and 0 after the limit.
    """
    output = (output_of("squeue", "--noheader", "--job", job, "--format", "%L") or "").strip()
    if output in ("UNLIMITED", "NOT_SET", ""):
        return math.inf
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", output)
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# --------------------------------------------------------------------------------- where Snakemake runs


def memory_mb(folder: Path, slurm: Slurm, measured_bytes: int | None) -> int:
    """Return the memory in MB that the next SLURM job of a run requests.

    This is 1.5 times `measured_bytes`, the peak memory of finished runs of the same task. If no such run is finished,
    the memory in the configuration is used. The memory is doubled for each job of this run that ran out of memory.
    """
    usual = slurm.memory if measured_bytes is None else max(500, math.ceil(1.5 * measured_bytes / 1e6))
    return usual << end_reasons(folder)[MEMORY]


def minutes(folder: Path, slurm: Slurm, seconds: float) -> int:
    """Return the minutes that the next SLURM job of a run requests.

    This is TIME_FACTOR times `seconds`, the expected time of the run, and at least MIN_MINUTES. It is doubled for each
    job of this run that ran out of time. It is never more than `walltime` in the configuration.
    """
    usual = max(MIN_MINUTES, math.ceil(TIME_FACTOR * seconds / 60))
    return min(usual << end_reasons(folder)[TIMEOUT], slurm.walltime)


def end_reasons(folder: Path) -> Counter[str]:
    """Count the reasons why the SLURM jobs of a run ended.

    A job that was killed wrote no reason. If this is the last job, its state in SLURM gives the reason, which is then
    written to jobs.json and failure.json.
    """
    jobs = read_jobs(folder)
    last = jobs[-1] if jobs else None
    if last is not None and last["reason"] is None and last["job"] != os.environ.get("SLURM_JOB_ID"):
        state = job_state(last["job"])
        if state not in NOT_ENDED:
            last["reason"] = REASONS.get(state or "", "killed")
            write_jobs(folder, jobs)
            write_failure(folder, last, state)
    return Counter(job["reason"] for job in jobs)


def job_state(job: str) -> str | None:
    """Return the state of a job in SLURM, such as "TIMEOUT"; None if the job is unknown.

    SLURM's controller forgets old jobs. For these, the state comes from SLURM's accounting.
    """
    output = output_of("scontrol", "show", "job", "--oneliner", job) or ""
    if match := re.search(r"\bJobState=(\w+)", output):
        return match[1]
    words = (output_of("sacct", "-nXP", "-j", job, "-o", "State") or "").split()
    return words[0] if words else None


def write_failure(folder: Path, job: dict[str, Any], state: str | None) -> None:
    """Write failure.json for a run whose process was killed before it could write the file."""
    path = folder / "failure.json"
    if path.exists() or is_finished(folder):
        return
    ended = f"SLURM's job {job['job']} on {job['node']} ended as {state or 'unknown'}, and the run wrote no reason"
    failure = {
        "reason": job["reason"],
        "exception": "",
        "traceback": "",
        "hint": f"{ended}; the same command continues from the last checkpoint",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }
    atomic(path, json.dumps(failure, indent=1).encode())


# --------------------------------------------------------------------------------- before any job is submitted


def check_cluster(slurm: Slurm, requested: Mapping[str, Any] | None = None) -> None:
    """Check that this cluster would accept jobs with these settings.

    `requested` are the resources of a job by name, such as slurm_partition. They may come from Snakemake's options,
    such as `--set-resources` and `--slurm-qos`, and win over `slurm`.

    Raises:
        ConfigError: SLURM is not installed, SLURM's controller does not answer, the partition is unknown, or SLURM
            refuses the account.
    """
    elsewhere = "run the command on the cluster's login node, or use `--profile local`"
    if missing := [name for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo") if shutil.which(name) is None]:
        raise ConfigError(
            f"`--profile slurm`: there is no SLURM on this machine ({', '.join(missing)} not found); {elsewhere}"
        )
    result = run_command("sinfo", "--all", "--noheader", "--format", "%R")  # --all: also hidden partitions
    if result.returncode:
        raise ConfigError(
            f"`--profile slurm`: SLURM's controller does not answer ({last_line(result.stderr)}); "
            f"try `scontrol ping`, ask the administrators, or {elsewhere}"
        )
    requested = requested or {}
    place = placement(slurm, requested)
    partitions = sorted(set(result.stdout.split()))
    for partition in (place["partition"] or "").split(","):
        if partition and partition not in partitions:
            raise ConfigError(
                f"`slurm: partition`: unknown partition {partition!r}; this cluster has {', '.join(partitions)}; "
                'set one of these in config/config.yaml, or with `--config slurm="{partition: NAME}"`'
            )
    options = [f"--{name}={value}" for name, value in place.items() if value]
    options += shlex.split(requested["slurm_extra"]) if "slurm_extra" in requested else slurm.options
    result = run_command("sbatch", "--test-only", *options, "--time=1", "--mem=100", "--wrap=true")
    if result.returncode:
        raise ConfigError(
            f"SLURM refuses a job of account {place['account'] or '(default)'} in partition "
            f"{place['partition'] or '(default)'}: {last_line(result.stderr)}; correct the keys under `slurm:` in "
            "config/config.yaml (`sacctmgr show user $USER -s` lists your accounts), or ask the administrators"
        )


def placement(slurm: Slurm, requested: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the options of sbatch that say where a job may run, such as its partition. None: SLURM chooses.

    `requested` are resources of a job by name, which win over `slurm`.
    """
    gpu, model = requested.get("gpu") or slurm.gpu, requested.get("gpu_model") or slurm.gpu_model
    return {
        "partition": requested.get("slurm_partition") or slurm.partition,
        "account": requested.get("slurm_account") or slurm.account,
        "qos": requested.get("qos") or slurm.qos,
        "constraint": requested.get("constraint") or slurm.constraint,
        "reservation": requested.get("reservation"),
        "gpus": (f"{model}:{gpu}" if model else str(gpu)) if gpu else None,
    }


def refuse_second_call(results: Path) -> None:
    """Lock the results folder until this process ends, so that no second process submits the same jobs.

    Raises:
        ConfigError: another process holds the lock.
    """
    path = results / SUBMITTING
    if (holder := hold_until_exit(path)) is not None:
        raise ConfigError(
            f"{path}: {holder} is submitting the jobs of these results; wait for this process or end it (if the "
            "machine of the process no longer runs, remove this file)"
        )


def last_line(text: str) -> str:
    """Return the last line of a command's output, or "no message" if the output is empty."""
    return (text.strip().splitlines() or ["no message"])[-1]


def output_of(*command: str) -> str | None:
    """Run a SLURM command and return its output; None if the command fails."""
    result = run_command(*command)
    return None if result.returncode else result.stdout


def run_command(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command and return the ended process.

    If the command is missing or does not end in time, the exit code is 1 and stderr has a message.
    """
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(
            command, 1, "", f"{command[0]}: no answer within {COMMAND_TIMEOUT_SECONDS:g} s"
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


# --------------------------------------------------------------------------------- jobs.json


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """Return the SLURM jobs that worked on a run, read from jobs.json. The list is empty for a run without SLURM.

    Raises:
        ConfigError: jobs.json is damaged.
    """
    path = folder / JOBS
    try:
        jobs = json.loads(path.read_text(encoding="utf-8"))
        return [{key: job[key] for key in ("job", "node", "began", "reason")} for job in jobs]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: damaged ({error!r}); remove this file, which only records earlier jobs") from error


def write_jobs(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Write the list of a run's SLURM jobs to jobs.json."""
    atomic(folder / JOBS, json.dumps(jobs, indent=1).encode())

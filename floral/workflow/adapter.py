"""All changes of Snakemake's own behaviour, one function each, and the hooks at the start and end of a call.

`workflow` is Snakemake's object for the whole call. Its attributes are not a stable interface, so each function here
has a test in tests/workflow/test_adapter.py.
"""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.logging import LogEvent

from floral.cluster import slurm, warm_start
from floral.config.reading import ConfigError
from floral.runs.state import failure_lines
from floral.stages import estimate, progress_line
from floral.workflow.rules import Rules

SCHEDULER_LINES = (
    "Select jobs to execute", "Execute ", "Touching output", "No SLURM account given", "Unable to guess SLURM",
)  # fmt: skip
"""Beginnings of the log lines that are hidden."""
JOB_EVENTS = (LogEvent.JOB_INFO, LogEvent.GROUP_INFO, LogEvent.SHELLCMD)
INTERRUPTED = "Terminating processes on user request"
"""Part of the line that Snakemake logs after Ctrl-C."""


def submits_jobs(workflow: Any) -> bool:
    """Whether jobs go to a cluster. This is also true in the Snakemake that runs within such a job."""
    return workflow.resource_settings.nodes is not None


def is_within_job() -> bool:
    """Whether this Snakemake runs within a SLURM job. It then does not know the profile."""
    return "SLURM_JOB_ID" in os.environ


def never_a_reason_to_rerun(parameter: Callable[..., str]) -> Callable[..., str]:
    """Hide a rule's parameter from Snakemake's provenance, so that another value does not repeat a finished job.

    Snakemake repeats a job if a parameter differs from the last call's. It ignores functions that take `output`,
    because their value follows from the path of the output. So this decorator adds an unused argument `output`.

    Use it for values that do not change a result, such as the device, or the suite that names a run. Everything that
    does change a result is part of the hash in the path of the output.
    """
    signature = inspect.signature(parameter)

    def hidden(wildcards: Any, output: Any, **arguments: Any) -> str:
        del output
        return parameter(wildcards, **arguments)

    output = inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY)
    hidden.__signature__ = signature.replace(parameters=[*signature.parameters.values(), output])  # type: ignore[attr-defined]
    return hidden


def hide_scheduler_lines(logger: logging.Logger, submits: bool) -> None:
    """Hide the scheduler's lines about each job, so that the progress lines of the runs stay visible.

    The slurm profile is not quiet about rules, because only these lines name the cause of a failed job. Where jobs are
    submitted, this function hides the lines about the start of a job.
    """

    def is_shown(record: logging.LogRecord) -> bool:
        starts_job = submits and getattr(record, "event", None) in JOB_EVENTS
        return not starts_job and not str(record.msg).startswith(SCHEDULER_LINES)

    logger.addFilter(is_shown)


def ignore_walltime_warning() -> None:
    """Ignore SIGUSR1 in the Snakemake within a job.

    SLURM warns every process of a job before its walltime ends. The run then writes a checkpoint, and Snakemake must
    live until that is done.
    """
    if is_within_job():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def keep_going_within_job(workflow: Any) -> None:
    """Let the other runs of a shared job go on after one has failed.

    The right time to call this is when Snakemake groups the jobs: it sets `execution_settings` after it has read the
    rules, and reads `keep_going` after it has grouped the jobs.
    """
    if is_within_job():
        workflow.execution_settings.keep_going = True


def run_group_in_parallel(workflow: Any) -> None:
    """Pass the options about groups to SLURM jobs. Without them, a job makes the runs of its group one by one."""
    workflow.executor_plugin.common_settings.pass_group_args = True


def remove_rate_limit(workflow: Any) -> None:
    """Start local jobs without Snakemake's limit of jobs per second.

    The limit protects a cluster's scheduler. On one machine it only adds a timer for each look at the waiting jobs,
    and these timers never end.
    """
    workflow.scheduler.job_rate_limiter = None


def warm_process(unfinished: int) -> warm_start.WarmStart | None:
    """Start the process from which runs are forked; None if there are too few unfinished runs to repay its start.

    The caller must keep the returned object, because the process ends when it is deleted.
    """
    if not warm_start.WarmStart.possible() or unfinished < warm_start.MIN_RUNS_FOR_WARM_START:
        return None
    with suppress(OSError):  # the path of the temporary folder is too long for a socket: runs import torch themselves
        return warm_start.WarmStart("floral.cli.start")
    return None


class Hooks:
    """Actions at the start and at the end of a Snakemake call."""

    def __init__(self, rules: Rules) -> None:
        self.work, self.results, self.rules = rules.work, rules.results, rules
        self.warm: warm_start.WarmStart | None = None

    def print_missing(self) -> None:
        """Print which runs were left out because their data are missing."""
        for line in self.work.missing:
            print(line, file=sys.stderr)

    def on_start(self, workflow: Any) -> None:
        """Check the cluster, prepare this machine, and print the estimate of time and disk.

        Raises:
            WorkflowError: the cluster would refuse the jobs, or another machine already submits runs to these results.
        """
        executor = workflow.executor_plugin.name
        if executor == "slurm":
            try:
                slurm.check_cluster(self.work.settings.slurm)
                slurm.refuse_second_call(self.results)
            except ConfigError as error:
                raise WorkflowError(str(error)) from None
            run_group_in_parallel(workflow)
        if executor == "local" and not is_within_job():
            remove_rate_limit(workflow)
            self.warm = warm_process(len(self.work.unfinished_runs))
        if self.work.untuned is None:
            progress_line.write_plan(self.work.suites, self.results)
            print(estimate.estimate(self.work.suites, self.results, workflow.nodes or workflow.cores), file=sys.stderr)

    def on_error(self, log: Iterable[str]) -> None:
        """Print the failed runs and build partial reports. After Ctrl-C, only print how to continue.

        `log` holds the paths of Snakemake's log files.
        """
        self.print_missing()
        if any(INTERRUPTED in Path(path).read_text() for path in log):
            print("Interrupted: finished runs are kept, and the same command continues.", file=sys.stderr)
            return
        unfinished = self.work.unfinished_suites
        for line in failure_lines(unfinished, self.results):
            print(line, file=sys.stderr)
        for suite in unfinished:
            subprocess.run(
                ["floral", "report", suite, "--partial", *shlex.split(self.rules.report_options())], check=False
            )

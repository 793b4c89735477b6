"""Functions that change how Snakemake behaves, and actions at the start and end of a Snakemake call.

`workflow` is Snakemake's object for the whole call. Its attributes can change with any release of Snakemake, so each
function here has a test in tests/workflow/test_adapter.py.
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
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from snakemake.logging import LogEvent, logger

from floral.cluster import slurm, warm_start
from floral.config.reading import ConfigError
from floral.io.files import remedy
from floral.io.locks import share_until_exit
from floral.runs.outdated import interrupted_by_other_code, outdated_lines
from floral.runs.state import IN_USE, failure_lines
from floral.stages import estimate, progress_line
from floral.workflow.rules import Rules

SCHEDULER_LINES = (
    "Select jobs to execute", "Execute ", "Touching output", "No SLURM account given", "Unable to guess SLURM",
)  # fmt: skip
"""Log lines with these beginnings are hidden."""
JOB_EVENTS = (LogEvent.JOB_INFO, LogEvent.GROUP_INFO, LogEvent.SHELLCMD)
INTERRUPTED = "Terminating processes on user request"
"""Part of the line that Snakemake logs after Ctrl-C."""

FILES_ARE_MISSING = "Snakemake stopped before it made {} of the requested files, because files changed while it planned"
"""Beginning of the message of `fail_if_files_are_missing`, with a place for the number of files."""


CONTROLLER = ("SLURM_CONF", "SLURM_CONF_SERVER")
"""Environment variables with which SLURM's commands find the controller, if the machine has no slurm.conf."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def ends_with_message(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function, so that a user's mistake ends Snakemake with its message and exit code 1.

    Snakemake would add the line of a rule's file and Python's traceback, which do not help the user.
    """

    @wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except (ConfigError, OSError) as error:
            message = str(error) if isinstance(error, ConfigError) else remedy(error)
            if message is None:
                raise
            logger.error(message)
            # Snakemake adds its own words to every other exception.
            raise SystemExit(1) from None

    return checked


def hide_password(workflow: Any, shown_uri: str | None) -> None:
    """Replace the address of MLflow in the values of `--config` by the address without its password.

    Snakemake writes these values into the command of each job that it submits. Jobs get the address from the
    environment variable FLORAL_TRACKING_URI.
    """
    values = workflow.config_settings.overwrite_config
    if values.get("tracking_uri"):
        values["tracking_uri"] = shown_uri


def submits_jobs(workflow: Any) -> bool:
    """Return whether Snakemake submits jobs to a cluster.

    Each of these jobs starts Snakemake again. Inside a job, the result is also true.
    """
    return workflow.resource_settings.nodes is not None


def is_within_job(workflow: Any) -> bool:
    """Return whether this Snakemake was started inside a SLURM job that another Snakemake submitted.

    If a user starts Snakemake in an interactive allocation, the result is false.
    """
    return "SLURM_JOB_ID" in os.environ and not workflow.is_main_process


def never_a_reason_to_rerun(parameter: Callable[..., str]) -> Callable[..., str]:
    """Decorate the function of a rule's parameter, so that Snakemake repeats no finished job if the parameter changes.

    Use this decorator for values that do not change a result, for example the device.

    By default, Snakemake repeats a finished job if a parameter has a new value. But it does not compare a parameter
    whose function has the argument `output`. So this decorator adds this argument, which is not used.
    """
    signature = inspect.signature(parameter)

    def hidden(wildcards: Any, output: Any, **arguments: Any) -> str:
        del output
        return parameter(wildcards, **arguments)

    output = inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY)
    hidden.__signature__ = signature.replace(parameters=[*signature.parameters.values(), output])  # type: ignore[attr-defined]
    return hidden


def hide_scheduler_lines(logger: logging.Logger, submits: bool) -> None:
    """Hide some lines of Snakemake's log, so that the progress lines of the runs stay visible.

    Lines that begin with one of SCHEDULER_LINES are always hidden. If `submits` is true (Snakemake submits jobs to a
    cluster), the lines that describe a job at its start are also hidden. Error lines are always shown.
    """

    def is_shown(record: logging.LogRecord) -> bool:
        starts_job = submits and getattr(record, "event", None) in JOB_EVENTS
        return not starts_job and not str(record.msg).startswith(SCHEDULER_LINES)

    logger.addFilter(is_shown)


def ignore_walltime_warning() -> None:
    """Let Snakemake ignore the signal SIGUSR1 inside a SLURM job or allocation.

    SLURM sends this signal to all processes of a job shortly before the job reaches its time limit. The training run
    then writes a checkpoint. Without this function, the signal would end Snakemake before the checkpoint is written.
    """
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def keep_going_within_job(workflow: Any) -> None:
    """If one run of a shared SLURM job fails, let the other runs of this job continue.

    This function sets Snakemake's option `keep_going`. Call it while Snakemake puts jobs into groups: before that, the
    option does not exist, and after that, a change of the option has no effect.
    """
    if is_within_job(workflow):
        workflow.execution_settings.keep_going = True


def run_group_in_parallel(workflow: Any) -> None:
    """If several runs share a SLURM job, let the job train them at the same time.

    For this, Snakemake passes its options about job groups to the Snakemake inside the job.
    """
    workflow.executor_plugin.common_settings.pass_group_args = True


def remove_rate_limit(workflow: Any) -> None:
    """Remove Snakemake's limit of how many jobs it starts per second.

    The limit protects the scheduler of a cluster. It is not needed if all jobs run on this machine.
    """
    # The limit would start a timer whenever Snakemake checks the waiting jobs, and these timers never stop.
    workflow.scheduler.job_rate_limiter = None


def requested_resources(workflow: Any) -> dict[str, Any]:
    """Return the resources that the first waiting job requests of the cluster, or nothing if no job waits.

    Snakemake's options `--default-resources`, `--set-resources`, `--slurm-qos` and `--slurm-reservation` change them.
    """
    jobs = (job for job in workflow.dag.needrun_jobs() if job.rule.name in ("train", "tune"))
    first = next(jobs, None)
    if first is None:
        return {}
    of_all_jobs = {name: getattr(workflow.executor_settings, name, None) for name in ("qos", "reservation")}
    return dict(first.resources.items()) | {name: value for name, value in of_all_jobs.items() if value}


def fail_if_files_are_missing(workflow: Any) -> None:
    """Let the call fail if Snakemake stops although requested files are missing.

    Snakemake would report success. It skips a run if the run's partition appears while Snakemake plans. This happens if
    a job that a killed call has left writes the partition at this time.
    """
    schedule = workflow.scheduler.schedule

    def schedule_all() -> bool:
        succeeded: bool = schedule()
        requested = [path for job in workflow.dag.targetjobs for path in (job.output or job.input)]
        missing = sum(not Path(path).exists() for path in requested) if succeeded else 0
        if missing:
            print(f"{FILES_ARE_MISSING.format(missing)}; repeat the same command", file=sys.stderr)
        return succeeded and not missing

    workflow.scheduler.schedule = schedule_all


def warm_process(unfinished: int) -> warm_start.WarmStart | None:
    """Start a server process that imports torch once, and then trains each run in a fork of itself.

    `unfinished` is the number of runs to train. Return None if they are so few that the server would save no time, or
    if this system cannot make such forks. Keep the returned object: the server ends when this object is deleted.
    """
    if not warm_start.WarmStart.possible() or unfinished < warm_start.MIN_RUNS_FOR_WARM_START:
        return None
    with suppress(OSError):  # The path of the temporary folder is too long for a socket: each run imports torch itself.
        return warm_start.WarmStart("floral.cli.start")
    return None


class Hooks:
    """The actions at the start of a Snakemake call, and at its end if a job has failed."""

    def __init__(self, rules: Rules) -> None:
        self.work, self.results, self.rules = rules.work, rules.results, rules
        self.warm: warm_start.WarmStart | None = None
        # The SLURM executor removes all variables SLURM_… inside a job. These two say where SLURM's controller is.
        self.slurm_variables = {name: os.environ[name] for name in CONTROLLER if name in os.environ}

    def print_missing(self) -> None:
        """Print why some runs are left out: their data are missing."""
        for line in self.work.missing:
            print(line, file=sys.stderr)

    def print_outdated(self) -> None:
        """Print which finished and interrupted runs were made by other code."""
        runs = [run for _, run in self.work.runs.values()]
        for line in outdated_lines(runs, self.work.outdated, interrupted_by_other_code(runs, self.results)):
            print(line, file=sys.stderr)

    def on_start(self, workflow: Any) -> None:
        """Prepare a Snakemake call, and print how much time and disk space its runs need.

        On a cluster, check that the cluster would accept the jobs. On one machine, start the server process that
        imports torch once for all runs.

        Raises:
            ConfigError: the cluster would refuse the jobs, no file can be written in the results or reports folder, or
                another Snakemake call already submits jobs for the same results folder.
        """
        executor = workflow.executor_plugin.name
        if executor == "slurm":
            os.environ.update(self.slurm_variables)
            slurm.check_cluster(self.work.settings.slurm, requested_resources(workflow))
            slurm.refuse_second_call(self.results)
            run_group_in_parallel(workflow)
        if workflow.is_main_process:
            self.work.settings.check_folders()
            share_until_exit(self.results / IN_USE)
        fail_if_files_are_missing(workflow)
        if executor == "local" and not is_within_job(workflow):
            remove_rate_limit(workflow)
            self.warm = warm_process(len(self.work.unfinished_runs))
        if self.work.untuned is None:
            at_once = None if executor == "slurm" else workflow.cores
            progress_line.write_plan(self.work.suites, self.results, at_once)
            print(estimate.estimate(self.work.suites, self.results, workflow.nodes or workflow.cores), file=sys.stderr)

    def on_error(self, log: Iterable[str]) -> None:
        """Print the failed runs. For each suite with unfinished runs, build a report of its finished runs.

        After Ctrl-C, print only how to continue. `log` holds the paths of Snakemake's log files.
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

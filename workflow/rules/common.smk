# What was asked for, checked before any job starts, and what is said at the start and at the end.

import os
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import LogEvent, logger

import floral
from floral.cluster import slurm, warm_start
from floral.config.data_sets import CUSTOM_PREFIX
from floral.config.reading import ConfigError
from floral.config.settings import read_settings
from floral.config.tuned import Untuned
from floral.core.units import run_count
from floral.runs import missing_data, reference
from floral.runs.state import is_finished
from floral.stages import check_data, fetch_missing, plan

try:
    SETTINGS = read_settings(config)
    SEARCHES = SETTINGS.searches()
    try:
        SUITES, UNTUNED = SETTINGS.runs(), None
    except Untuned as reason:  # what tunes them must be able to start
        SUITES, UNTUNED = {}, reason
    if workflow.is_main_process:
        # A dry run changes no result: it says what would be done.
        look, act = (reference.available, reference.restore) if SETTINGS.reuse else (reference.taken, reference.forget)
        REUSED = (look if workflow.output_settings.dryrun else act)(SUITES, SETTINGS.results)
        if REUSED:
            did = "taken from" if SETTINGS.reuse else "made anew and not taken from"
            would = (
                " (not in a dry run, which changes nothing and lists the results as they are)"
                if workflow.output_settings.dryrun
                else ""
            )
            print(f"{run_count(len(REUSED))} {did} {reference.REFERENCE}{would}", file=sys.stderr)
    MISSING = []
    if SETTINGS.allow_missing:
        if workflow.is_main_process:  # a job has no network, and needs no data but those of its own run
            fetch_missing.try_to_fetch(missing_data.tasks(SUITES, SEARCHES), SETTINGS.results, SETTINGS.data_dir)
        SUITES, SEARCHES, MISSING = missing_data.leave_out(SUITES, SEARCHES, SETTINGS.results)
    if workflow.is_main_process:
        check_data.check(missing_data.tasks(SUITES, SEARCHES), SETTINGS.results)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS, REPORTS = SETTINGS.results, SETTINGS.reports

# A run that two suites share is made once, under the first of them.
RUNS = {str(run.folder): (suite, run) for suite in reversed(SUITES) for run in SUITES[suite]}
TRIALS = [(suite, trial) for suite, search in SEARCHES.values() for trial in search.references()]
PARTITIONS = {str(run.partition.folder): (suite, run) for suite, run in [*RUNS.values(), *TRIALS]}

os.environ.update(SETTINGS.environment())

CLUSTER = workflow.resource_settings.nodes is not None
"""Whether jobs are submitted, or were, to bring us here."""
WITHIN = "SLURM_JOB_ID" in os.environ
"""Whether this is the Snakemake within a job, to which the profile is unknown."""

# The scheduler's lines about each job, and what it touches, would drown the runs' lines of progress. What a cluster's
# job failed of is told by nothing else, so the slurm profile is not quiet about rules.
DROWNING = ("Select jobs to execute", "Execute ", "Touching output", "No SLURM account given", "Unable to guess SLURM")
logger.addFilter(
    lambda record: not str(record.msg).startswith(DROWNING)
    and not (CLUSTER and getattr(record, "event", None) in (LogEvent.JOB_INFO, LogEvent.GROUP_INFO, LogEvent.SHELLCMD))
)


def say_what_is_missing():
    for line in MISSING:
        print(line, file=sys.stderr)


if workflow.is_main_process:
    say_what_is_missing()


wildcard_constraints:
    suite=r"[^/+]+",
    data=r"[^/]+",
    task=r"[^/]+",
    variant=r"[^/]+",
    seed=r"\d+",
    hash8=r"[0-9a-f]{8}",


def tuned_values_first(wildcards):
    """No file, but an error while runs that were asked for lack their tuned values."""
    if UNTUNED is not None:
        raise WorkflowError(str(UNTUNED))
    return []


def runs_of(wildcards):
    """The finished runs of a suite."""
    return [f"{RESULTS}/{run.folder}/done" for run in SUITES[wildcards.suite]]


def data_of(wildcards):
    """The data set that is partitioned; synthetic data need no fetch."""
    _, run = PARTITIONS[f"partition/{wildcards.task}/seed{wildcards.seed}-{wildcards.hash8}"]
    return f"{RESULTS}/data/{run.partition.data}/card.json" if isinstance(run.partition.data, str) else []


def partition_of(wildcards):
    """The partition that a run reads."""
    _, run = RUNS[f"train/{wildcards.task}/{wildcards.variant}/seed{wildcards.seed}-{wildcards.hash8}"]
    return [] if run.task.noop else f"{RESULTS}/{run.partition.folder}/partition.parquet"


def search_of(wildcards):
    return SEARCHES[f"tune/{wildcards.task}/{wildcards.variant}/{wildcards.hash8}"]


def searches_to_write(wildcards):
    if not SEARCHES:
        raise WorkflowError(
            f"{', '.join(SETTINGS.suite)}: nothing to tune: no block says `tuned: true`, or all values are committed"
        )
    return [f"{RESULTS}/{folder}/done" for folder in SEARCHES]


def write_job(wildcards):
    suites = dict.fromkeys(suite for suite, _ in SEARCHES.values())
    return f"{' '.join(suites)} {narrowing(wildcards, None, leave_out='seeds')}"


def partitions_of_search(wildcards):
    _, search = search_of(wildcards)
    return [f"{RESULTS}/{trial.partition.folder}/partition.parquet" for trial in search.references()]


# Parameters that are functions of `output` or `resources` are no reason to make a result again, as the suite that
# asks for a run, or the device, must not be: a path holds the hash of whatever decides its content.


def fetch_job(wildcards, output):
    if not wildcards.data.startswith(CUSTOM_PREFIX):
        return wildcards.data
    suite = next(suite for suite, run in PARTITIONS.values() if run.partition.data == wildcards.data)
    return f"{wildcards.data} --suite {suite}"


def partition_job(wildcards, output):
    suite, run = PARTITIONS[str(Path(output.table).parent.relative_to(RESULTS))]
    return f"--suite {suite} --task {run.task.name} --seed {run.seed} --expect {wildcards.hash8}"


def train_job(wildcards, output):
    suite, run = RUNS[str(Path(output.done).parent.relative_to(RESULTS))]
    return f"--suite {suite} --task {run.task.name} --variant {run.variant.name} --seed {run.seed} --expect {run.hash8}"


def tune_job(wildcards, output):
    suite, search = search_of(wildcards)
    return f"{suite} --tasks {search.task.name} --variants {search.variant.name}"


# What a run's job asks a cluster for; other executors than SLURM's read mem_mb, runtime and gpu too.

ASKED = SETTINGS.slurm


@cache
def expected():
    return plan.costs([run for _, run in RUNS.values()], RESULTS)


def run_of(wildcards):
    return RUNS[f"train/{wildcards.task}/{wildcards.variant}/seed{wildcards.seed}-{wildcards.hash8}"][1]


def memory(wildcards):
    run = run_of(wildcards)
    return slurm.memory(RESULTS / run.folder, ASKED, expected()[run.folder].memory)


def minutes(wildcards):
    run = run_of(wildcards)
    return slurm.minutes(RESULTS / run.folder, ASKED, expected()[run.folder].seconds)


def group_of(wildcards):
    """Of values alone, so that whoever asks gets the same answer."""
    if WITHIN:  # asked before anything is run; of runs that share a job, one that fails must not stop the others
        workflow.execution_settings.keep_going = True
    short = plan.rough_seconds(run_of(wildcards)) <= ASKED.short and not ASKED.gpu
    return "short" if CLUSTER and short else None


WHERE = {"slurm_partition": ASKED.partition} if ASKED.partition else {}
WHERE |= {"slurm_account": ASKED.account} if ASKED.account else {}
WHERE |= {"gpu": ASKED.gpu} if CLUSTER and ASKED.gpu else {}
WHERE |= {"gpu_model": ASKED.gpu_model} if CLUSTER and ASKED.gpu and ASKED.gpu_model else {}
ASKING = WHERE | {"mem_mb": memory, "runtime": minutes, "slurm_extra": f"--signal=USR1@{slurm.WARNING}"}
# On one machine nobody reads them, yet the scheduler would work them out for all runs that wait, whenever one ends.
TRAINING = {} if not CLUSTER and workflow.is_main_process else ASKING
SEARCHING = WHERE | {"mem_mb": ASKED.memory, "runtime": ASKED.walltime}
"""A search knows no expected time; its finished trials survive a walltime that was too short."""

# SLURM warns every process of a job. Snakemake's, within it, must outlive the run that writes its checkpoint.
if WITHIN:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def execution(wildcards, threads, resources):
    """How a run is computed, which changes its speed and not its results: a GPU that was asked for is used."""
    device = "cuda" if resources.get("gpu") else SETTINGS.device
    how = f"--device {device} --runs-per-gpu {SETTINGS.runs_per_gpu} --backend {SETTINGS.backend}"
    return f"{how} --threads {threads}"


def training(wildcards, output):
    """The same of a run alone: searches are in single precision and short."""
    return f"--precision {SETTINGS.precision} --checkpoint-seconds {SETTINGS.checkpoint_seconds:g}"


def narrowing(wildcards, output, leave_out=None):
    """The options that name the same runs to `floral`."""
    given = {axis: values for axis, values in SETTINGS.narrowing.items() if values is not None and axis != leave_out}
    return " ".join(f"--{axis} {' '.join(map(str, values))}" for axis, values in given.items())


def reported(wildcards, output):
    """The options of a report."""
    return narrowing(wildcards, output) + (" --allow-missing" if SETTINGS.allow_missing else "")


onstart:
    if workflow.executor_plugin.name == "slurm":
        try:
            slurm.check(ASKED)
            slurm.only_here(RESULTS)
            workflow.executor_plugin.common_settings.pass_group_args = True  # else a job makes its runs one by one
        except ConfigError as error:
            raise WorkflowError(str(error)) from None
    here = workflow.executor_plugin.name == "local" and not WITHIN
    # There is no service to spare here, and with a ration every look at what waits sets a timer for one more, for ever.
    if here:
        workflow.scheduler.job_rate_limiter = None
    left = sum(not is_finished(RESULTS / run.folder) for _, run in RUNS.values())
    if here and warm_start.Warm.possible() and left >= warm_start.WORTH:
        with suppress(OSError):  # the temporary folder's path is too long for a socket: runs start cold
            globals()["WARM"] = warm_start.Warm("floral.cli.start")
    if UNTUNED is None:
        plan.start(SUITES, RESULTS)
        print(plan.estimate(SUITES, RESULTS, workflow.nodes or workflow.cores), file=sys.stderr)


onsuccess:
    say_what_is_missing()


onerror:
    say_what_is_missing()
    unfinished = {
        name: runs for name, runs in SUITES.items() if not all(is_finished(RESULTS / run.folder) for run in runs)
    }
    if "Terminating processes on user request" in "".join(map(Path.read_text, map(Path, log))):
        print("Interrupted: finished runs are kept, and the same command continues.", file=sys.stderr)
    else:
        for line in plan.failures(unfinished, RESULTS):
            print(line, file=sys.stderr)
        for suite in unfinished:
            shell(f"floral report {suite} --partial {reported(None, None)} || true")

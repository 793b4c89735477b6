# What was asked for, checked before any job starts, and what is said at the start and at the end.

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

import floral
from floral.config import ConfigError, Untuned
from floral.stages import plan

try:
    SETTINGS = plan.settings(config)
    SEARCHES = SETTINGS.searches()
    try:
        SUITES, UNTUNED = SETTINGS.runs(), None
    except Untuned as reason:  # what tunes them must be able to start
        SUITES, UNTUNED = {}, reason
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS, REPORTS = SETTINGS.results, SETTINGS.reports

# A run that two suites share is made once, under the first of them.
RUNS = {str(run.folder): (suite, run) for suite in reversed(SUITES) for run in SUITES[suite]}
TRIALS = [(suite, trial) for suite, search in SEARCHES.values() for trial in search.references()]
PARTITIONS = {str(run.partition.folder): (suite, run) for suite, run in [*RUNS.values(), *TRIALS]}

os.environ.update(SETTINGS.environment())

# The scheduler's lines about each job, and what it touches, would drown the runs' lines of progress.
logger.addFilter(
    lambda record: not str(record.msg).startswith(("Select jobs to execute", "Execute ", "Touching output"))
)


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
    return f"{RESULTS}/data/{run.task.data}/card.json" if isinstance(run.task.data, str) else []


def partition_of(wildcards):
    """The partition that a run reads."""
    _, run = RUNS[f"train/{wildcards.task}/{wildcards.variant}/seed{wildcards.seed}-{wildcards.hash8}"]
    return [] if run.task.noop else f"{RESULTS}/{run.partition.folder}/partition.parquet"


def search_of(wildcards):
    return SEARCHES[f"tune/{wildcards.task}/{wildcards.variant}/{wildcards.hash8}"]


def searches_to_write(wildcards):
    if not SEARCHES:
        raise WorkflowError(f"{', '.join(SETTINGS.suite)}: no block says `tuned: true`, so there is nothing to tune")
    return [f"{RESULTS}/{folder}/done" for folder in SEARCHES]


def write_job(wildcards):
    suites = dict.fromkeys(suite for suite, _ in SEARCHES.values())
    return f"{' '.join(suites)} {narrowing(wildcards, None, leave_out='seeds')}"


def partitions_of_search(wildcards):
    _, search = search_of(wildcards)
    return [f"{RESULTS}/{trial.partition.folder}/partition.parquet" for trial in search.references()]


# Parameters that are functions of `output` or `resources` are no reason to make a result again, as the suite that
# asks for a run, or the device, must not be: a path holds the hash of whatever decides its content.


def partition_job(wildcards, output):
    suite, run = PARTITIONS[str(Path(output.table).parent.relative_to(RESULTS))]
    return f"--suite {suite} --task {run.task.name} --seed {run.seed} --expect {wildcards.hash8}"


def train_job(wildcards, output):
    suite, run = RUNS[str(Path(output.done).parent.relative_to(RESULTS))]
    return f"--suite {suite} --task {run.task.name} --variant {run.variant.name} --seed {run.seed} --expect {run.hash8}"


def tune_job(wildcards, output):
    suite, search = search_of(wildcards)
    return f"{suite} --tasks {search.task.name} --variants {search.variant.name}"


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


onstart:
    if UNTUNED is None:
        plan.start(SUITES, RESULTS)
        print(plan.estimate(SUITES, RESULTS, workflow.cores or workflow.nodes), file=sys.stderr)


onerror:
    unfinished = {
        name: runs for name, runs in SUITES.items() if not all(plan.finished(run, RESULTS) for run in runs)
    }
    if "Terminating processes on user request" in "".join(map(Path.read_text, map(Path, log))):
        print("Interrupted: finished runs are kept, and the same command continues.", file=sys.stderr)
    else:
        for line in plan.failures(unfinished, RESULTS):
            print(line, file=sys.stderr)
        for suite in unfinished:
            shell(f"floral report {suite} --partial {narrowing(None, None)} || true")

# What was asked for, checked before any job starts, and what is said at the start and at the end.

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

import floral
from floral.config import ConfigError
from floral.stages import plan

try:
    SETTINGS = plan.settings(config)
    SUITES = SETTINGS.runs()
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS, REPORTS = SETTINGS.results, SETTINGS.reports

# A run that two suites share is made once, under the first of them.
RUNS = {str(run.folder): (suite, run) for suite in reversed(SUITES) for run in SUITES[suite]}
PARTITIONS = {str(run.partition.folder): (suite, run) for suite, run in RUNS.values()}

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


def runs_of(wildcards):
    """The finished runs of a suite."""
    return [f"{RESULTS}/{run.folder}/done" for run in SUITES[wildcards.suite]]


def data_of(wildcards):
    """The data set that is partitioned; synthetic data need no fetch."""
    _, run = PARTITIONS[f"partition/{wildcards.task}/seed{wildcards.seed}-{wildcards.hash8}"]
    return f"{RESULTS}/data/{run.task.data}/card.json" if isinstance(run.task.data, str) else []


def partition_of(wildcards):
    _, run = RUNS[f"train/{wildcards.task}/{wildcards.variant}/seed{wildcards.seed}-{wildcards.hash8}"]
    return f"{RESULTS}/{run.partition.folder}/partition.parquet"


# Parameters that are functions of `output` or `resources` are no reason to make a result again, as the suite that
# asks for a run, or the device, must not be: a path holds the hash of whatever decides its content.


def partition_job(wildcards, output):
    suite, run = PARTITIONS[str(Path(output.table).parent.relative_to(RESULTS))]
    return f"--suite {suite} --task {run.task.name} --seed {run.seed} --expect {wildcards.hash8}"


def train_job(wildcards, output):
    suite, run = RUNS[str(Path(output.done).parent.relative_to(RESULTS))]
    return f"--suite {suite} --task {run.task.name} --variant {run.variant.name} --seed {run.seed} --expect {run.hash8}"


def execution(wildcards, threads, resources):
    """How a run is computed, which changes its speed and not its results: a GPU that was asked for is used."""
    device = "cuda" if resources.get("gpu") else SETTINGS.device
    how = f"--device {device} --backend {SETTINGS.backend} --precision {SETTINGS.precision} --threads {threads}"
    return f"{how} --runs-per-gpu {SETTINGS.runs_per_gpu} --checkpoint-seconds {SETTINGS.checkpoint_seconds:g}"


def narrowing(wildcards, output):
    """The options that name the same runs to `floral`."""
    given = {axis: values for axis, values in SETTINGS.narrowing.items() if values is not None}
    return " ".join(f"--{axis} {' '.join(map(str, values))}" for axis, values in given.items())


onstart:
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

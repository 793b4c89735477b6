# The runs, searches and partitions of this call, checked before any job starts. The code is in floral/workflow/:
#   work.py      what this call makes
#   rules.py     inputs and command-line options of each rule
#   requests.py  memory, time and place that a job requests of a cluster
#   adapter.py   what is changed in Snakemake's own behaviour

import os

from snakemake.logging import logger

import floral
from floral.workflow import adapter
from floral.workflow.adapter import ends_with_message, never_a_reason_to_rerun
from floral.workflow.requests import Requests
from floral.workflow.rules import Rules
from floral.workflow.work import Work

WORK = ends_with_message(Work.read)(
    workflow.config_settings.overwrite_config, workflow.is_main_process, workflow.output_settings.dryrun
)
SETTINGS = WORK.settings
RESULTS, REPORTS = SETTINGS.results, SETTINGS.reports
SUBMITS = adapter.submits_jobs(workflow)

RULES = Rules(WORK)
REQUESTS = Requests(RULES, SUBMITS)
HOOKS = adapter.Hooks(RULES)

SETTINGS.export()
adapter.hide_password(workflow, SETTINGS.shown_tracking_uri)
adapter.hide_scheduler_lines(logger, SUBMITS)
adapter.ignore_walltime_warning()
if workflow.is_main_process:
    HOOKS.print_missing()
    ends_with_message(HOOKS.print_outdated)()
    if SUBMITS:
        ends_with_message(REQUESTS.check)()

# On one machine nothing reads the requests, and the scheduler would compute them for all waiting runs whenever one ends.
TRAIN_RESOURCES = REQUESTS.train if SUBMITS or not workflow.is_main_process else {}
TUNE_RESOURCES = REQUESTS.tune


def train_group(wildcards):
    """The group of runs that share a cluster job."""
    adapter.keep_going_within_job(workflow)
    return REQUESTS.group(wildcards)


wildcard_constraints:
    suite=r"[^/]+",
    data=r"[^/]+",
    task=r"[^/]+",
    variant=r"[^/]+",
    seed=r"\d+",
    hash8=r"[0-9a-f]{8}",


onstart:
    ends_with_message(HOOKS.on_start)(workflow)


onsuccess:
    HOOKS.print_missing()


onerror:
    HOOKS.on_error(log)

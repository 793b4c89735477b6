"""Each change of Snakemake's own behaviour, alone."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from projects import ROOT
from snakemake.common import get_function_params
from snakemake.logging import LogEvent
from snakemake.rules import Rule
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.settings.types import ExecutionSettings
from snakemake_interface_executor_plugins.settings import CommonSettings

from floral.cluster import slurm, warm_start
from floral.config.reading import ConfigError
from floral.config.settings import Settings
from floral.config.suites import suite_runs
from floral.io.locks import HELD_UNTIL_EXIT, busy
from floral.runs.forget import without_snakemake
from floral.runs.state import IN_USE
from floral.workflow import adapter
from floral.workflow.rules import Rules
from floral.workflow.work import Work


@pytest.fixture(autouse=True)
def outside_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture(autouse=True)
def released_locks() -> Iterator[None]:
    yield
    while HELD_UNTIL_EXIT:
        HELD_UNTIL_EXIT.pop().close()


@pytest.fixture
def within_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")


@pytest.fixture
def logger() -> logging.Logger:
    return logging.Logger("snakemake")


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> adapter.Hooks:
    """Of a suite of three runs, none of which is finished."""
    monkeypatch.chdir(ROOT)
    runs = suite_runs("quickstart", tasks=["digits_rotate"], variants=["fedavg"])
    settings = Settings(suite=("quickstart",), seeds=(0, 1, 2), results=tmp_path)
    return adapter.Hooks(Rules(Work(settings, {"quickstart": runs}, {}, missing=("data missing: mnist",))))


def call(executor: str, **attributes: Any) -> SimpleNamespace:
    """A stand-in for Snakemake's `workflow`."""
    plugin = SimpleNamespace(name=executor, common_settings=SimpleNamespace(pass_group_args=False))
    scheduler = SimpleNamespace(job_rate_limiter="10 jobs per second", schedule=lambda: True)
    values = {"nodes": None, "cores": 2, "is_main_process": True, "executor_settings": None, **attributes}
    return SimpleNamespace(executor_plugin=plugin, scheduler=scheduler, **values)


def record(message: str, event: LogEvent | None = None) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", logging.INFO, "", 0, message, None, None)
    made.event = event
    return made


# ------------------------------------------------------------------------------------ provenance


def test_snakemake_does_not_compare_a_hidden_parameter() -> None:
    def options(wildcards: Any) -> str:
        return f"--suite {wildcards}"

    hidden = adapter.never_a_reason_to_rerun(options)
    assert not Rule._is_deriving_function(options) and Rule._is_deriving_function(hidden)
    assert hidden("tiny", output=["results/…/done"]) == "--suite tiny"


def test_a_hidden_parameter_gets_the_arguments_of_its_function_and_no_others() -> None:
    """Snakemake works out the resources of every waiting job for a function that takes `resources`."""

    def execution(wildcards: Any, threads: int, resources: dict[str, Any]) -> str:
        return f"{wildcards} {threads} {resources['gpu']}"

    hidden = adapter.never_a_reason_to_rerun(execution)
    assert hidden("run", output=[], threads=2, resources={"gpu": 1}) == "run 2 1"
    assert set(get_function_params(hidden)) == {"wildcards", "threads", "resources", "output"}
    assert set(get_function_params(adapter.never_a_reason_to_rerun(lambda wildcards: ""))) == {"wildcards", "output"}


# ------------------------------------------------------------------------------------ log


@pytest.mark.parametrize("line", adapter.SCHEDULER_LINES)
def test_lines_of_the_scheduler_are_hidden(logger: logging.Logger, line: str) -> None:
    adapter.hide_scheduler_lines(logger, submits=False)
    assert not logger.filter(record(f"{line}…"))
    assert logger.filter(record("Building DAG of jobs..."))


@pytest.mark.parametrize("event", adapter.JOB_EVENTS)
def test_the_start_of_a_job_is_hidden_only_where_jobs_are_submitted(logger: logging.Logger, event: LogEvent) -> None:
    adapter.hide_scheduler_lines(logger, submits=False)
    assert logger.filter(record("rule train:", event))
    adapter.hide_scheduler_lines(logger, submits=True)
    assert not logger.filter(record("rule train:", event))
    assert logger.filter(record("Error in rule train:", LogEvent.JOB_ERROR))


# ------------------------------------------------------------------------------------ within a job


@pytest.fixture
def usual_signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, handler)


def test_snakemake_within_a_job_survives_the_warning(usual_signals: None, within_a_job: None) -> None:
    adapter.ignore_walltime_warning()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_outside_of_a_job_the_signal_keeps_its_meaning(usual_signals: None) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    adapter.ignore_walltime_warning()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_runs_of_a_shared_job_go_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = SimpleNamespace(execution_settings=ExecutionSettings(), is_main_process=False)
    adapter.keep_going_within_job(workflow)
    assert workflow.execution_settings.keep_going is False
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    adapter.keep_going_within_job(workflow)
    assert workflow.execution_settings.keep_going is True


def test_jobs_are_submitted_where_snakemake_counts_nodes() -> None:
    assert adapter.submits_jobs(SimpleNamespace(resource_settings=SimpleNamespace(nodes=100)))
    assert not adapter.submits_jobs(SimpleNamespace(resource_settings=SimpleNamespace(nodes=None)))


# ------------------------------------------------------------------------------------ start


def test_a_job_makes_the_runs_of_its_group_side_by_side() -> None:
    settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False)
    assert settings.pass_group_args is False
    adapter.run_group_in_parallel(SimpleNamespace(executor_plugin=SimpleNamespace(common_settings=settings)))
    assert settings.pass_group_args is True


def test_local_jobs_have_no_rate_limit() -> None:
    """Snakemake's scheduler starts all free jobs where `job_rate_limiter` is None."""
    workflow = call("local")
    adapter.remove_rate_limit(workflow)
    assert workflow.scheduler.job_rate_limiter is None
    assert "job_rate_limiter" in JobScheduler.__init__.__code__.co_names


def test_a_call_that_leaves_files_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Snakemake's scheduler may return True although a requested file is missing."""
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    for outputs, inputs in ((files, []), ([], files)):  # rule `all` has only inputs
        workflow = call("local", dag=SimpleNamespace(targetjobs=[SimpleNamespace(output=outputs, input=inputs)]))
        adapter.fail_if_files_are_missing(workflow)
        (tmp_path / "a").touch()
        (tmp_path / "b").unlink(missing_ok=True)
        assert workflow.scheduler.schedule() is False
        assert capsys.readouterr().err == f"{adapter.FILES_ARE_MISSING.format(1)}; repeat the same command\n"
        (tmp_path / "b").touch()
        assert workflow.scheduler.schedule() is True and not capsys.readouterr().err
    assert "schedule" in dir(JobScheduler)


def test_few_runs_start_without_a_warm_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "WarmStart", Warm)
    assert adapter.warm_process(warm_start.MIN_RUNS_FOR_WARM_START - 1) is None
    process = adapter.warm_process(warm_start.MIN_RUNS_FOR_WARM_START)
    assert isinstance(process, Warm) and process.module == "floral.cli.start"


def test_without_room_for_a_socket_runs_start_without_a_warm_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: str) -> Warm:
        raise OSError("AF_UNIX path too long")

    refuse.possible = lambda: True  # type: ignore[attr-defined]
    monkeypatch.setattr(warm_start, "WarmStart", refuse)
    assert adapter.warm_process(warm_start.MIN_RUNS_FOR_WARM_START) is None


class Warm:
    """A stand-in that starts no process."""

    def __init__(self, module: str) -> None:
        self.module = module

    @staticmethod
    def possible() -> bool:
        return True


@pytest.mark.parametrize("interactive", [False, True])
def test_the_start_on_this_machine_prints_the_estimate(
    hooks: adapter.Hooks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interactive: bool
) -> None:
    if interactive:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(warm_start, "MIN_RUNS_FOR_WARM_START", 3)
    monkeypatch.setattr(warm_start, "WarmStart", Warm)
    workflow = call("local")
    hooks.on_start(workflow)
    assert "suite quickstart: 3 runs of 1 task and 1 variant: 0 finished, 3 to do" in capsys.readouterr().err
    assert (hooks.results / "plan/quickstart.json").exists()
    assert workflow.scheduler.job_rate_limiter is None and isinstance(hooks.warm, Warm)
    refused = pytest.raises(ConfigError, match="Snakemake works with these results; wait until it ends, or stop it")
    with refused, without_snakemake(hooks.results):
        raise AssertionError("runs would be removed beside Snakemake")
    HELD_UNTIL_EXIT.pop().close()
    with without_snakemake(hooks.results):
        assert busy(hooks.results / IN_USE), "Snakemake waits"


def test_the_start_within_a_job_leaves_snakemake_as_it_is(hooks: adapter.Hooks, within_a_job: None) -> None:
    workflow = call("local", is_main_process=False)
    hooks.on_start(workflow)
    assert workflow.scheduler.job_rate_limiter and hooks.warm is None


def test_the_start_on_a_cluster_checks_it_first(hooks: adapter.Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the resources that a job requests, also those of Snakemake's own options."""
    checks: list[Any] = []
    monkeypatch.setattr(slurm, "check_cluster", lambda *values: checks.extend(values))
    monkeypatch.setattr(slurm, "refuse_second_call", checks.append)
    options = SimpleNamespace(qos="long", reservation=None)
    workflow = call("slurm", dag=Jobs(slurm_partition="night", qos="short"), executor_settings=options)
    hooks.on_start(workflow)
    assert checks == [hooks.work.settings.slurm, {"slurm_partition": "night", "qos": "long"}, hooks.results]
    assert workflow.executor_plugin.common_settings.pass_group_args is True
    assert workflow.scheduler.job_rate_limiter and hooks.warm is None


class Jobs:
    """A stand-in for Snakemake's graph of jobs, with one job of rule `fetch` and one of rule `train`."""

    def __init__(self, **resources: Any) -> None:
        self.resources = resources

    def needrun_jobs(self) -> Iterator[Any]:
        for rule, resources in (("fetch", {}), ("train", self.resources)):
            yield SimpleNamespace(rule=SimpleNamespace(name=rule), resources=resources)


def test_the_controller_is_found_inside_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The SLURM executor removes all variables SLURM_… before `on_start`, if the call is made inside a job."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_CONF", "/var/spool/slurm.conf")
    hooks = adapter.Hooks(Rules(Work(Settings(suite=("quickstart",), results=tmp_path), {}, {})))
    monkeypatch.delenv("SLURM_CONF")
    seen: list[str | None] = []
    monkeypatch.setattr(slurm, "check_cluster", lambda *_: seen.append(os.environ.get("SLURM_CONF")))
    monkeypatch.setattr(slurm, "refuse_second_call", lambda *_: None)
    hooks.on_start(call("slurm", dag=Jobs()))
    assert seen == ["/var/spool/slurm.conf"]


@pytest.mark.parametrize(
    ("error", "message"),
    [(ConfigError("no suite; name one"), "no suite; name one"), (PermissionError(13, "no", "/x"), "/x: you have no")],
)
def test_a_users_mistake_ends_snakemake_with_its_message(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(wildcards: Any) -> None:
        raise error

    shown: list[str] = []
    monkeypatch.setattr(adapter.logger, "error", shown.append)
    with pytest.raises(SystemExit) as ended:
        adapter.ends_with_message(fail)(None)
    assert ended.value.code == 1 and shown[0].startswith(message)
    assert set(get_function_params(adapter.ends_with_message(fail))) == {"wildcards"}


def test_a_programming_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        adapter.ends_with_message(lambda: 1 / 0)()


def test_a_cluster_that_refuses_ends_the_call_before_anything_is_written(
    hooks: adapter.Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigError("slurm: partition: unknown partition 'gpu'")

    monkeypatch.setattr(slurm, "check_cluster", refuse)
    with pytest.raises(ConfigError, match="unknown partition 'gpu'"):
        hooks.on_start(call("slurm", dag=Jobs()))
    assert not (hooks.results / "plan").exists()


# ------------------------------------------------------------------------------------ end


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were called, and were not run."""
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    return calls


@pytest.fixture
def snakemake_log(tmp_path: Path) -> Callable[[str], list[str]]:
    def write(text: str) -> list[str]:
        (tmp_path / "snakemake.log").write_text(text)
        return [str(tmp_path / "snakemake.log")]

    return write


def test_failed_runs_are_named_and_reported(
    hooks: adapter.Hooks, commands: list[list[str]], snakemake_log: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = hooks.work.unfinished_runs[0]
    (hooks.results / run.folder).mkdir(parents=True)
    (hooks.results / run.folder / "failure.json").write_text(
        '{"reason": "crash", "exception": "ValueError: no", "traceback": "", "hint": "", "time": "now"}'
    )
    hooks.on_error(snakemake_log("Error in rule train"))
    printed = capsys.readouterr().err
    assert "data missing: mnist" in printed and "failed: digits_rotate fedavg seed 0: " in printed
    assert commands == [
        ["floral", "report", "quickstart", "--partial", "--seeds", "0", "1", "2", "--precision", "fp32"]
    ]


def test_after_an_interrupt_nothing_is_reported(
    hooks: adapter.Hooks, commands: list[list[str]], snakemake_log: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hooks.on_error(snakemake_log(f"{adapter.INTERRUPTED}, this might take some time."))
    assert "Interrupted: finished runs are kept" in capsys.readouterr().err and not commands

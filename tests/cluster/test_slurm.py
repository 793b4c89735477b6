"""What a run asks SLURM for and learns from it; its commands are replaced. tests/slurm has a real one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from floral.cluster import slurm
from floral.config.reading import ConfigError, parse
from floral.config.settings import Slurm
from floral.io.locks import HELD_UNTIL_EXIT

ASKED = Slurm(memory=1000, walltime=100)
Commands = Callable[..., Path]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands of SLURM's that do what they are given in shell; every call is a line of `called`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(**scripts: str) -> Path:
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "sacct"):
            path = folder / name
            path.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/called\n{scripts.get(name, "exit 1")}\n')
            path.chmod(0o755)
        return folder / "called"

    return make


def worked(folder: Path, *reasons: str | None) -> None:
    folder.mkdir(exist_ok=True)
    slurm.write_jobs(
        folder, [{"job": str(at), "node": "n1", "began": 0.0, "reason": one} for at, one in enumerate(reasons)]
    )


@pytest.mark.parametrize(
    ("reasons", "memory", "minutes"),
    [
        ([], 1000, 10),
        (["out of memory"], 2000, 10),
        (["walltime"], 1000, 20),
        (["walltime", "out of memory", "out of memory"], 4000, 20),
        (["requeued", "preempted", "cancelled", "node failure", "interrupted", "exception", "killed"], 1000, 10),
        (["walltime"] * 5, 1000, 100),
    ],
)
def test_only_its_own_cause_raises_a_limit(tmp_path: Path, reasons: list[str], memory: int, minutes: int) -> None:
    worked(tmp_path, *reasons)
    assert (slurm.memory_mb(tmp_path, ASKED, None), slurm.minutes(tmp_path, ASKED, 20.0)) == (memory, minutes)


def test_a_run_asks_for_what_its_task_was_measured_to_need(tmp_path: Path) -> None:
    assert slurm.memory_mb(tmp_path, ASKED, 2_000_000_000) == 3000
    assert slurm.minutes(tmp_path, ASKED, 1000.0) == 50


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("echo JobId=0 JobState=OUT_OF_MEMORY Reason=x", "out of memory"),
        ("echo JobId=0 JobState=TIMEOUT Reason=x", "walltime"),
        ("echo JobId=0 JobState=NODE_FAIL Reason=x", "node failure"),
        ("echo JobId=0 JobState=CANCELLED Reason=x", "cancelled"),
        ("echo JobId=0 JobState=FAILED Reason=x", "killed"),
        ("exit 1", "killed"),
    ],
)
def test_slurm_says_why_a_run_ended_that_could_not(tmp_path: Path, commands: Commands, said: str, reason: str) -> None:
    commands(scontrol=said)
    worked(tmp_path / "run", None)
    assert slurm.end_reasons(tmp_path / "run") == {reason: 1}
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["reason"] == reason and "job 0 on n1" in failure["hint"]
    assert slurm.read_jobs(tmp_path / "run")[0]["reason"] == reason


def test_slurms_accounting_knows_what_its_controller_has_forgotten(tmp_path: Path, commands: Commands) -> None:
    commands(sacct="echo OUT_OF_MEMORY")
    worked(tmp_path / "run", None)
    assert slurm.memory_mb(tmp_path / "run", ASKED, None) == 2000


def test_a_job_that_is_alive_has_no_reason_yet(tmp_path: Path, commands: Commands) -> None:
    commands(scontrol="echo JobState=RUNNING")
    worked(tmp_path / "run", None)
    assert slurm.end_reasons(tmp_path / "run") == {None: 1}
    assert not (tmp_path / "run" / "failure.json").exists()


def test_a_job_that_is_requeued_appears_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    slurm.record_start(tmp_path)
    slurm.record_end(tmp_path, "interrupted")
    slurm.record_start(tmp_path)
    slurm.record_end(tmp_path, "done")
    assert [(one["job"], one["reason"]) for one in slurm.read_jobs(tmp_path)] == [("7", "requeued"), ("7", "done")]


@pytest.mark.parametrize(
    ("by", "left", "reason", "requeued"),
    [
        (signal.SIGUSR1, "0:58", "walltime", False),
        (signal.SIGUSR1, "INVALID", "walltime", False),
        (signal.SIGUSR1, "1-02:03:04", "preempted", True),
        (signal.SIGUSR1, "UNLIMITED", "preempted", True),
        (signal.SIGTERM, "0:00", "walltime", False),
        (signal.SIGTERM, "12:00", "interrupted", False),
        (signal.SIGTERM, "", "interrupted", False),
        (signal.SIGINT, "12:00", "interrupted", False),
    ],
)
def test_a_warning_with_time_left_is_a_preemption_and_requeues(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, by: int, left: str, reason: str, requeued: bool
) -> None:
    called = commands(squeue=f"echo {left}", scontrol="exit 0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert slurm.stop_reason(by) == reason
    assert ("scontrol requeue 7" in (called.read_text() if called.exists() else "")) == requeued


def test_without_slurm_a_signal_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.stop_reason(signal.SIGTERM) == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"job": "1"}]'])
def test_a_damaged_record_is_named_with_its_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / slurm.JOBS).write_text(text)
    with pytest.raises(ConfigError, match=r"jobs\.json: damaged .*remove this file"):
        slurm.end_reasons(tmp_path)


# --------------------------------------------------------------------------------------------- the cluster


def test_a_cluster_that_takes_our_jobs(commands: Commands) -> None:
    called = commands(sinfo="echo main; echo gpu", sbatch="exit 0")
    slurm.check_cluster(Slurm(partition="gpu", account="lab"))
    assert "sbatch --test-only --partition=gpu --account=lab" in called.read_text()


@pytest.mark.parametrize(
    ("scripts", "asked", "message"),
    [
        (
            {"sinfo": "echo slurm_load_partitions: Unable to contact slurm controller >&2; exit 1"}, {},
            r"controller does not answer \(slurm_load_partitions: Unable to contact.*try `scontrol ping`",
        ),
        (
            {"sinfo": "echo main; echo gpu"}, {"partition": "gpus"},
            r"`slurm: partition`: unknown partition 'gpus'; this cluster has gpu, main",
        ),
        ({"sinfo": "echo main; echo gpu"}, {"partition": "main,gpus"}, r"unknown partition 'gpus'; this cluster has"),
        (
            {"sinfo": "echo main", "sbatch": "echo allocation failure: Invalid account >&2; exit 1"}, {"account": "me"},
            r"refuses a job of account me in partition \(default\): allocation failure: Invalid account; correct",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_cluster_is_said_with_the_remedy(
    commands: Commands, scripts: dict[str, str], asked: dict[str, str], message: str
) -> None:
    commands(**scripts)
    with pytest.raises(ConfigError, match=message):
        slurm.check_cluster(Slurm(**asked))


@pytest.mark.parametrize("partition", ["main,gpu", "main, gpu", " gpu,main,", "main gpu"])
def test_several_partitions_are_one_request(commands: Commands, partition: str) -> None:
    called = commands(sinfo="echo main; echo gpu", sbatch="exit 0")
    slurm.check_cluster(Slurm(partition=partition))
    assert "--partition=main,gpu " in called.read_text() or "--partition=gpu,main " in called.read_text()


def test_a_hidden_partition_is_known(commands: Commands) -> None:
    commands(sinfo='case "$*" in *--all*) echo hidden;; esac; echo main', sbatch="exit 0")
    slurm.check_cluster(Slurm(partition="main,hidden"))


def test_the_check_requests_what_jobs_request(commands: Commands) -> None:
    """Resources of Snakemake's options win over those of the configuration."""
    called = commands(sinfo="echo main; echo gpu", sbatch="exit 0")
    settings = Slurm(partition="none", qos="long", constraint="ib", options=("--reservation=course",), gpu=2)
    slurm.check_cluster(settings, {"slurm_partition": "gpu", "slurm_account": "lab", "gpu": 1, "gpu_model": "a100"})
    options = "--partition=gpu --account=lab --qos=long --constraint=ib --gpus=a100:1 --reservation=course"
    assert f"sbatch --test-only {options} --time=1" in called.read_text()
    slurm.check_cluster(settings, {"slurm_partition": "gpu", "qos": "short", "reservation": "course", "gpu": 1,
                                   "slurm_extra": "--signal=USR1@60 '--exclude=n 7'"})  # fmt: skip
    options = "--partition=gpu --qos=short --constraint=ib --reservation=course --gpus=1 --signal=USR1@60"
    assert f"sbatch --test-only {options} --exclude=n 7 --time=1" in called.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition=x"], "--partition is set by `partition`"),
        (["--signal=USR1@9"], "--signal is set by Snakemake"),
        (["-p x"], "'-p x' is no long option of sbatch"),
        (["; rm -r x"], "is no long option"),
        ("--mem=3", "--mem is set by `memory`"),
    ],
)
def test_options_that_snakemake_sets_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Slurm, {"options": options}, "config.yaml")


def test_no_slurm_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no SLURM on this machine \(sbatch, .*login node, or use `--profile local"):
        slurm.check_cluster(Slurm())


def test_a_controller_that_is_silent_is_not_waited_for(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(sinfo="exec /bin/sleep 60")
    monkeypatch.setattr(slurm, "COMMAND_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=r"does not answer \(sinfo: no answer within 0\.2 s\)"):
        slurm.check_cluster(Slurm())


HOLD = """
import sys, time
from pathlib import Path
from floral.cluster.slurm import refuse_second_call
refuse_second_call(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_call_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout and first.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"process {first.pid} on .* is submitting .*wait for this process"):
            slurm.refuse_second_call(tmp_path)
        first.kill()
        first.wait()
    slurm.refuse_second_call(tmp_path)
    HELD_UNTIL_EXIT.pop().close()

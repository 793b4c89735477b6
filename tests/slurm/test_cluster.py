"""`snakemake --profile slurm` on a real SLURM: what it kills, and that nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Cluster, at_work
from projects import BIN, Project, environment

pytestmark = pytest.mark.slurm

SMALL = """
title: Small
about: Four runs that are disturbed, one each, and two that share a job.
runs:
  - tasks: [digits_rotate]
    variants: [fedavg]
    seeds: [0, 1, 2, 3]
    task: {rounds: 300, clients: 4, clusters: 2}
  - tasks: [digits_rotate]
    variants: [fedavg, floral_1]
    seeds: [9]
    task: {rounds: 2, clients: 4, clusters: 2}
"""
COMMON = ["suite=small", "backend=loop", "checkpoint_seconds=0.2"]
PATIENCE = 400
"""Seconds in which whatever is waited for happens on a slow machine."""


class Run:
    """A run's folder, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def jobs(self) -> list[dict[str, Any]]:
        path = self.folder / "jobs.json"
        return json.loads(path.read_text()) if path.exists() else []

    @property
    def reasons(self) -> list[str | None]:
        return [one["reason"] for one in self.jobs]

    @property
    def pid(self) -> int:
        return int((self.folder / ".lock").read_text().split()[1])

    def freeze(self, job: int = 1) -> None:
        """Stop its process in the middle, when its so-manieth job is at work: it cannot end before its turn."""
        wait(lambda: len(self.jobs) >= job and self.reasons[-1] is None, f"{self.folder}: job {job}")
        if job == 1:
            wait((self.folder / "checkpoint/last.safetensors").exists, f"{self.folder}: a checkpoint")
        os.kill(self.pid, signal.SIGSTOP)
        assert not (self.folder / "summary.json").exists()


def wait(happened: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < until, f"not within {PATIENCE} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (folder := tmp_path / "clone").mkdir()
    return Project.made(folder, small=SMALL)


@pytest.fixture
def disturbed(cluster: Cluster, project: Project) -> tuple[Project, dict[str, Run], str]:
    """The suite after one run was cancelled, one hit its walltime, one was preempted and one lost its node."""
    command = [BIN / "snakemake", "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "2"]
    asked = "slurm={memory: 500, short: 4.5}"
    with (project.folder / "said.txt").open("w") as said:
        head = subprocess.Popen(
            [*command, "--config", *COMMON, asked], cwd=project.folder, env=environment(**cluster.variables),
            stdout=said, stderr=said,
        )  # fmt: skip
    try:
        pattern = "results/train/digits_rotate/fedavg/seed[0-3]-*/checkpoint/last.safetensors"
        found: dict[Path, Run] = {}

        def all_frozen() -> bool:
            for folder in {path.parents[1] for path in project.paths(pattern)} - set(found):
                found[folder] = Run(folder)
                found[folder].freeze()
            return len(found) == 4

        wait(all_frozen, f"four of {pattern}")
        runs = list(found.values())
        by_node = sorted((at(node, runs) for node in ("n1", "n2")), key=len)
        assert 1 <= len(by_node[0]) <= 2, by_node
        late, cancelled, preempted, lost = *by_node[0], *by_node[1]
        cluster.ask("scancel", cancelled.jobs[0]["job"])
        wait(lambda: cancelled.reasons[0] is not None, "the end of the run that was cancelled")
        node = lost.jobs[0]["node"]
        cluster.ask("sbatch", "--partition=urgent", f"--nodelist={node}", "--exclusive", "--time=1", "--wrap=true")
        for run in (preempted, lost):
            wait(lambda run=run: run.reasons[0] is not None, "the end of the run that was preempted")
            cluster.at_once(run.jobs[0]["job"])
        lost.freeze(2)
        wait(lambda: time.time() > late.jobs[0]["began"] + 60, "a minute")
        cluster.ask("scontrol", "update", f"JobId={late.jobs[0]['job']}", "TimeLimit=1")
        wait(lambda: late.reasons[0] is not None, "the end of its walltime")
        node = lost.jobs[1]["node"]
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        there = {run.jobs[-1]["job"] for run in runs if "done" not in run.reasons and run.jobs[-1]["node"] == node}
        wait(lambda: not any(map(at_work, there)), f"the end of all jobs on {node}")
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        for job in there - {late.jobs[0]["job"]}:
            cluster.at_once(job)
        assert head.wait(timeout=PATIENCE) == 0, (project.folder / "said.txt").read_text()
    except BaseException:
        print((project.folder / "said.txt").read_text())
        raise
    finally:
        head.kill()
        head.wait()
    named = {"scancel": cancelled, "walltime": late, "preempted": preempted, "node down": lost}
    return project, named, (project.folder / "said.txt").read_text()


def at(node: str, runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.jobs[0]["node"] == node]


def test_what_the_cluster_refuses_is_said_before_anything_is_submitted(cluster: Cluster, project: Project) -> None:

    def said(slurm: str) -> str:
        told = project.call(
            "snakemake", "--profile", "slurm", "--config", *COMMON, f"slurm={slurm}", **cluster.variables
        )
        assert told.returncode != 0
        return told.stdout

    unknown = said("{partition: gpu}")
    assert "`slurm: partition`: unknown partition 'gpu'; this cluster has closed, main, urgent" in unknown, unknown
    refused = said("{partition: closed, account: someone}")
    assert "SLURM refuses a job of account someone in partition closed" in refused, refused
    assert "correct the keys under `slurm:` in config/config.yaml" in refused
    assert not project.paths("results/train/*")


def test_a_full_scratch_is_named_and_the_run_continues_when_there_is_room(
    cluster: Cluster, project: Project, tmp_path: Path
) -> None:
    """The results lie on a file system that is too small for the run."""
    del cluster
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    prepared = project.call("snakemake", "--profile", "local", "--until", "partition", "--config", *COMMON, "seeds=[0]")
    assert prepared.returncode == 0, prepared.stdout
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", scratch], check=True)
    try:
        subprocess.run(["cp", "-r", *(project.folder / "results").iterdir(), scratch], check=True)
        filler = scratch / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - (12 << 10))
        command = [
            "floral",
            "train",
            "--suite",
            "small",
            "--task",
            "digits_rotate",
            "--variant",
            "fedavg",
            "--seed",
            "0",
        ]
        full = project.call(*command, FLORAL_RESULTS=str(scratch))
        assert full.returncode == 1 and "disk full" in full.stdout, full.stdout
        assert "free space on the file system of the results; the same command continues" in full.stdout
        filler.unlink()
        assert project.call(*command, FLORAL_RESULTS=str(scratch)).returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", scratch], check=True)


def test_a_suite_survives_whatever_a_cluster_does_to_it(
    cluster: Cluster, disturbed: tuple[Project, dict[str, Run], str], capsys: pytest.CaptureFixture[str]
) -> None:
    project, named, said = disturbed
    records = cluster.records()
    with capsys.disabled():
        print(table(named, records))

    # Both nodes worked, and each run was ended as it was meant to be.
    assert {record["NodeList"] for ends in records.values() for record in ends} >= {"n1", "n2"}
    states = {name: [ends["JobState"] for job in unique(run) for ends in records[job]] for name, run in named.items()}
    assert states["scancel"][0] == "CANCELLED" and states["walltime"][0] == "TIMEOUT", states
    assert states["preempted"][0] == "PREEMPTED" and "NODE_FAIL" in states["node down"], states
    assert states["preempted"][-1] == states["node down"][-1] == "COMPLETED", states

    # Cancelled and late runs were retried as new jobs; the late one alone asked for more time, none for more memory.
    limits = {name: [int(records[job][-1]["TimeLimit"]) for job in unique(run)] for name, run in named.items()}
    assert limits == {"scancel": [10, 10], "walltime": [1, 20], "preempted": [10], "node down": [10]}
    memory = {
        one["Tres"].split("mem=")[1].split(",")[0] for run in named.values() for j in unique(run) for one in records[j]
    }
    assert memory == {"500M"}
    assert named["scancel"].reasons[0] == "interrupted" and named["walltime"].reasons[0] == "walltime"
    assert all(run.reasons[-1] == "done" for run in named.values())
    assert named["preempted"].reasons[0] == named["node down"].reasons[0] == "requeued"

    # All of them continued from their checkpoints, to the same numbers as runs with hardly any checkpoint.
    for run in named.values():
        assert json.loads((run.folder / "costs.json").read_text())["resumptions"] >= 1
        assert "after round 0" not in (run.folder / "log.txt").read_text().split("a checkpoint is written")[-1]
    calm = ["suite=small", "backend=loop", "results=calm", "reports=calm", "seeds=[0,1,2,3]"]
    undisturbed = project.call("snakemake", "--profile", "local", "--until", "train", "--config", *calm)
    assert undisturbed.returncode == 0, undisturbed.stdout
    for run in named.values():
        twin = project.folder / "calm" / run.folder.relative_to(project.folder / "results")
        for name in ("metrics.parquet", "model.safetensors"):
            assert (run.folder / name).read_bytes() == (twin / name).read_bytes()

    # The two short runs shared a job, and the report has all six.
    short = {Run(path.parent).jobs[0]["job"] for path in project.paths("results/train/*/*/seed9-*/jobs.json")}
    assert len(short) == 1 and "tres=cpu=2" in records[short.pop()][-1]["Tres"].lower().replace("cpu", "tres=cpu", 1)
    assert len(pl.read_parquet(project.folder / "reports/small/summary.parquet")) == 6
    assert (project.folder / "results/report/small.complete").exists()
    assert "report: reports/small/index.html" in said


def unique(run: Run) -> list[str]:
    return list(dict.fromkeys(one["job"] for one in run.jobs))


def table(named: dict[str, Run], records: dict[str, list[dict[str, str]]]) -> str:
    """What was killed and how it was recovered."""
    rows = [("what was done", "seed", "jobs: node, how the run's work ended", "SLURM's record", "resumed", "result")]
    for name, run in named.items():
        work = " → ".join(f"{one['job']} {one['node']} {one['reason']}" for one in run.jobs)
        states = " → ".join(end["JobState"] for job in unique(run) for end in records[job])
        resumed = json.loads((run.folder / "costs.json").read_text())["resumptions"]
        status = json.loads((run.folder / "summary.json").read_text())["status"]
        rows.append((name, run.folder.name[4], work, states, f"{resumed} times", status))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n" + "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )

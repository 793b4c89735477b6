"""The task without data, on which the pipeline itself is measured."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from projects import ROOT, Project, environment

from floral.config.suites import suite_runs
from floral.report.build import report
from floral.stages.train import train
from floral.tracking.track import track

JOB = """
import sys
from floral.cli.main import main
code = main(["train", "--suite", "noop", "--task", "noop", "--variant", "floral_1", "--seed", "0"])
loaded = {"torch", "mlflow", "altair"} & set(sys.modules)
sys.exit(f"{loaded} imported" if loaded else code)
"""


def test_its_job_imports_no_torch(tmp_path: Path) -> None:
    job = subprocess.run([sys.executable, "-c", JOB], cwd=ROOT, env=environment(FLORAL_RESULTS=str(tmp_path)))
    assert job.returncode == 0
    assert len(list(tmp_path.glob("train/noop/floral_1/seed0-*/done"))) == 1


def test_the_other_stages_take_its_runs_as_any_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    runs = suite_runs("noop", variants=["fedavg", "floral_1"], seeds=[0, 1])
    for run in runs:
        assert train(run, tmp_path, device="cpu", runs_per_gpu=1) == 0
    report("noop", runs, tmp_path, reports=tmp_path / "reports")
    table = pl.read_parquet(tmp_path / "reports/noop/summary.parquet")
    assert table["status"].to_list() == ["done"] * 4 and table["test_accuracy"].to_list() == [0] * 4
    assert len(json.loads(track("noop", runs, tmp_path).read_text())["runs"]) == 4


def test_the_graph_of_a_thousand_jobs_is_ready_within_ten_seconds(project: Project) -> None:
    """Of one core's own time: other work on the machine must not fail the test."""
    before = spent()
    planned = project.call("snakemake", "--profile", "local", "--dry-run", "--quiet", "all", "--config", "suite=noop")
    assert planned.returncode == 0 and "train 1000" in " ".join(planned.stdout.split()), planned.stdout[-2000:]
    assert spent() - before < 10


def spent() -> float:
    """Seconds of computing of all child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime

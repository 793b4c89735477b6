"""The code of a method is changed in a project with finished runs: everything says so, and new runs replace the old."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from projects import ROOT, Project

NOTICE = "1 run made by other code: floral/methods/fedavg.py has changed (fedavg)"


@pytest.fixture
def here(copy: Project) -> Project:
    """A finished project with a copy of the package that a test may change."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "floral", copy.folder / "floral", ignore=ignore)
    shutil.copytree(ROOT / "reports" / "template", copy.folder / "reports" / "template")
    return copy


def called(project: Project, *command: str) -> str:
    done = project.call(*command, PYTHONPATH=str(project.folder))
    assert done.returncode == 0, done.stdout
    return done.stdout


def snakemake(project: Project) -> str:
    return called(project, "snakemake", "--profile", "local", "--config", "suite=tiny")


def folders(project: Project, variant: str) -> list[Path]:
    return project.paths(f"results/train/digits_rotate/{variant}/seed0-*")


def change_the_step(project: Project) -> None:
    path = project.folder / "floral" / "methods" / "fedavg.py"
    path.write_text(path.read_text().replace("problem.lr)", "0.5 * problem.lr)"))


def tracked(project: Project) -> list[Run]:
    """The runs of FedAvg in MLflow."""
    client = MlflowClient(f"sqlite:///{project.folder / 'results' / 'track' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    return list(client.search_runs([experiment], "tags.variant = 'fedavg'"))


def accuracies(project: Project) -> list[float]:
    """FedAvg's test accuracy in summary.parquet, in its run in MLflow, and in the mean of its one seed in MLflow."""
    table = pl.read_parquet(project.folder / "reports" / "tiny" / "summary.parquet")
    runs = tracked(project)
    assert sorted(run.data.tags["kind"] for run in runs) == ["mean", "seed"]
    (mean,) = (run.data.metrics for run in runs if run.data.tags["kind"] == "mean")
    (seed,) = (run.data.metrics for run in runs if run.data.tags["kind"] == "seed")
    (reported,) = table.filter(pl.col("variant") == "fedavg").select("test_loss", "own_test_accuracy").iter_rows()
    assert [mean["test/loss"], mean["own_test/accuracy"]] == list(reported)
    assert seed["own_test/accuracy"] == reported[1]
    return list(reported)


def test_changed_code_is_named_forgotten_and_trained_again(here: Project) -> None:
    before, others = accuracies(here), {*folders(here, "local"), *folders(here, "floral_1")}
    assert "other code" not in snakemake(here)
    change_the_step(here)
    assert NOTICE in snakemake(here)
    page = here.folder / "reports" / "tiny" / "index.html"
    assert NOTICE in page.read_text()
    assert NOTICE in called(here, "floral", "status", "tiny")
    (old,) = folders(here, "fedavg")
    removed = called(here, "floral", "forget", "fedavg")
    assert tracked(here) == [], "neither FedAvg's run nor its mean is left in MLflow"
    assert "1 run removed from results" in removed and "reports/tiny: built again" in removed
    assert not old.exists() and "other code" not in page.read_text()
    assert "other code" not in snakemake(here)
    assert folders(here, "fedavg") == [old] and {*folders(here, "local"), *folders(here, "floral_1")} == others
    after = accuracies(here)
    assert after != before
    assert "other code" not in page.read_text()


def test_a_new_version_gives_new_folders_and_keeps_the_old_ones(here: Project) -> None:
    change_the_step(here)
    path = here.folder / "config" / "methods" / "fedavg.yaml"
    path.write_text(path.read_text() + "version: 2\n")
    (old,) = folders(here, "fedavg")
    contents = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    others = {*folders(here, "local"), *folders(here, "floral_1")}
    assert "other code" not in snakemake(here)
    assert len(folders(here, "fedavg")) == 2 and {*folders(here, "local"), *folders(here, "floral_1")} == others
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == contents

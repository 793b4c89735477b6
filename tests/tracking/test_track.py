"""MLflow on its real SQLite store, over run folders that need no training."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from projects import BIN, ROOT, environment
from run_folders import make_run

from floral.cli.labels import labels_of
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.settings import read_settings
from floral.config.suites import suite_runs
from floral.tracking import mlflow_store
from floral.tracking.mlflow_store import create_store, default_uri
from floral.tracking.track import attach, track
from floral.tracking.views import TAG

MAX_TAG_CHARACTERS = 5000
"""MLflow's limit for a tag of an experiment."""


in_empty_store = pytest.mark.usefixtures("empty_store")
"""The tests without this mark are those of the creation of a store."""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.chdir(ROOT)
    return suite_runs("quickstart", variants=["fedavg", "floral_1"], seeds=[0], tasks=["digits_rotate"])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run's folder, as the stage train leaves it."""

    def write(run: Run, accuracy: float = 0.5) -> Path:
        folder = tmp_path / run.folder
        folder.mkdir(parents=True)
        told = {"hash8": run.hash8, "partition": {"folder": str(run.partition.folder), "digest": "0123456789abcdef"}}
        (folder / "run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json") | told))
        rows = [(step, "test", "accuracy", accuracy + step / 100) for step in range(3)] + [(2, "test", "loss", None)]
        pl.DataFrame(rows, ["round", "split", "metric", "value"], orient="row").write_parquet(
            folder / "metrics.parquet"
        )
        pl.DataFrame({"client": [0]}).write_parquet(folder / "clients.parquet")
        costs = {
            "parameters": {"base": 10}, "seconds": {"setup": 1.0, "total": 2.0}, "bytes_per_round": 80,
            "passes_per_sample": 1.0, "peak_memory_bytes": 1, "resumptions": 0, "versions": {"floral": "0.1.0"},
            "git_commit": None,
        }  # fmt: skip
        (folder / "costs.json").write_text(json.dumps(costs))
        summary = {
            "status": "done", "task": run.task.name, "variant": run.variant.name, "method": run.variant.method,
            "family": run.variant.family, "seed": run.seed, "fidelity": run.fidelity.name, "hash8": run.hash8,
            "round": 2, "finished_at": "2026-01-02T03:04:05+00:00",
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write


def dump(results: Path) -> list[str]:
    with sqlite3.connect(results / "track" / "mlflow.db") as database:
        lines = sorted(database.iterdump())
    database.close()
    return lines


def logged(results: Path, suite: str = "quickstart", kind: str = "seed") -> list[Any]:
    """The runs of a kind: those of seeds, their parents (`mean`), or that of the report."""
    from mlflow import MlflowClient

    client = MlflowClient(default_uri(results))
    experiment = client.get_experiment_by_name(suite)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")


@in_empty_store
def test_a_run_carries_parameters_curves_tags_and_files(
    runs: list[Run], write: Callable[..., Path], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    write(runs[0])
    track("quickstart", runs, tmp_path)
    (found,) = logged(tmp_path)  # the second run is not finished
    assert found.info.run_name == "digits_rotate/fedavg/seed0"
    assert found.data.tags["job_key"] == str(runs[0].folder)
    assert found.data.tags["status"] == "done"
    assert found.data.params["variant.name"] == "fedavg"
    assert found.data.tags["fidelity"] == "corrected"
    assert found.data.metrics["cost/base"] == 10
    client = MlflowClient(default_uri(tmp_path))
    curve = client.get_metric_history(found.info.run_id, "own_test/accuracy")
    assert [(point.step, point.value) for point in curve] == [(0, 0.5), (1, 0.51), (2, 0.52)]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"run.yaml", "metrics.parquet", "clients.parquet", "summary.json", "costs.json"}


@in_empty_store
def test_tracking_twice_changes_nothing(runs: list[Run], write: Callable[..., Path], tmp_path: Path) -> None:
    for run in runs:
        write(run)
    first = track("quickstart", runs, tmp_path).read_bytes()
    before = dump(tmp_path)
    assert track("quickstart", runs, tmp_path).read_bytes() == first
    assert dump(tmp_path) == before


@in_empty_store
def test_a_run_that_was_half_logged_is_completed(runs: list[Run], write: Callable[..., Path], tmp_path: Path) -> None:
    for run in runs:
        write(run)
    track("quickstart", runs, tmp_path)
    before = dump(tmp_path)
    with sqlite3.connect(tmp_path / "track" / "mlflow.db") as database:
        database.execute("DELETE FROM metrics WHERE step = 2")
        database.execute("UPDATE runs SET status = 'RUNNING', end_time = NULL")
    database.close()
    track("quickstart", runs, tmp_path)
    assert dump(tmp_path) == before


@in_empty_store
def test_a_run_that_was_trained_again_replaces_the_old_one(
    runs: list[Run], write: Callable[..., Path], tmp_path: Path
) -> None:
    """Its child and its parent then have the new values."""
    from mlflow import MlflowClient

    for run in runs:
        write(run)
    track("quickstart", runs, tmp_path)
    client = MlflowClient(default_uri(tmp_path))
    shutil.rmtree(tmp_path / runs[0].folder)
    write(runs[0], accuracy=0.7)
    track("quickstart", runs, tmp_path)
    values = {found.data.tags["variant"]: found.data.metrics["own_test/accuracy"] for found in logged(tmp_path)}
    assert values == {runs[0].variant.name: 0.72, runs[1].variant.name: 0.52}
    means = {
        found.data.tags["variant"]: found.data.metrics["own_test/accuracy"] for found in logged(tmp_path, kind="mean")
    }
    assert means == values
    (child,) = [found for found in logged(tmp_path) if found.data.tags["variant"] == runs[0].variant.name]
    assert [point.value for point in client.get_metric_history(child.info.run_id, "cost/base")] == [10]


@in_empty_store
def test_runs_with_earlier_names_of_metrics_are_logged_again(
    runs: list[Run], write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their ids change, and the report of the suite stays."""
    from mlflow import MlflowClient

    for run in runs:
        write(run)
    (tmp_path / "reports/quickstart").mkdir(parents=True)
    track("quickstart", runs, tmp_path)
    report = attach("quickstart", tmp_path, tmp_path / "reports")
    before = {found.info.run_id: found for kind in ("seed", "mean") for found in logged(tmp_path, kind=kind)}
    client = MlflowClient(default_uri(tmp_path))
    for run_id in before:
        client.delete_tag(run_id, mlflow_store.NAMES)
    attach("quickstart", tmp_path, tmp_path / "reports")
    track("quickstart", runs[:1], tmp_path, all_runs=runs)  # on a server, another folder may have the other runs
    assert len({found.info.run_id for found in logged(tmp_path)} & before.keys()) == 1
    track("quickstart", runs, tmp_path)
    assert capsys.readouterr().out.count("MLflow: 1 run of an earlier version archived, to log again") == 2
    now = {found.info.run_id: found for kind in ("seed", "mean") for found in logged(tmp_path, kind=kind)}
    assert len(now) == 4 and not now.keys() & before.keys()
    names = {found.info.run_name: found.data.metrics for found in now.values()}
    assert names == {found.info.run_name: found.data.metrics for found in before.values()}
    assert [found.info.run_id for found in logged(tmp_path, kind="report")] == [report]


@in_empty_store
def test_parameters_are_the_settings_that_differ_in_the_suite(
    runs: list[Run], write: Callable[..., Path], tmp_path: Path
) -> None:
    """Runs that MLflow has get the parameters that differ since the suite has more runs."""
    for run in runs:
        write(run)
    track("quickstart", runs, tmp_path)
    for found in logged(tmp_path) + logged(tmp_path, kind="mean"):
        assert found.data.params["variant.name"] == found.data.tags["variant"]
        assert not {"seed", "task.rounds", "fidelity.name"} & found.data.params.keys()
    longer = runs[0].model_copy(update={"seed": 1, "task": runs[0].task.model_copy(update={"rounds": 7})})
    before = {found.info.run_id for found in logged(tmp_path)}
    track("quickstart", runs, tmp_path, all_runs=[*runs, longer])
    assert {found.info.run_id for found in logged(tmp_path)} == before
    for kind in ("seed", "mean"):
        for found in logged(tmp_path, kind=kind):
            assert found.data.params["task.rounds"] == str(runs[0].task.rounds)
            assert ("seed" in found.data.params) == (kind == "seed")


@in_empty_store
def test_names_and_colours_are_those_of_the_report(runs: list[Run], write: Callable[..., Path], tmp_path: Path) -> None:
    """Two configurations of a task have distinct names, and every method has a colour of its own."""
    longer = [run.model_copy(update={"task": run.task.model_copy(update={"rounds": 7})}) for run in runs]
    for run in runs + longer:
        write(run)
    track("quickstart", runs + longer, tmp_path, labels=labels_of(runs + longer))
    for kind in ("seed", "mean"):
        found = logged(tmp_path, kind=kind)
        assert len({run.info.run_name for run in found}) == len(found) == 4
        colours = {(run.data.tags["variant"], run.data.tags[mlflow_store.COLOUR]) for run in found}
        assert len(colours) == len({colour for _, colour in colours}) == 2
    assert ("fedavg", "#3f83c9") in colours
    assert f"fedavg on {runs[0].task.name}, rounds 7" in {run.info.run_name for run in found}


@in_empty_store
def test_views_are_saved_for_the_suite_and_each_task_and_changes_of_readers_stay(
    runs: list[Run], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    def views() -> dict[str, str]:
        tags = MlflowClient(default_uri(tmp_path)).get_experiment("1").tags
        return {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}

    track("quickstart", runs, tmp_path)
    assert views().keys() == {"means"}
    MlflowClient(default_uri(tmp_path)).set_experiment_tag("1", f"{TAG}means", "changed")
    linear = make_run("synthetic_linear", "fedavg", 0)
    track("quickstart", [*runs, linear], tmp_path)
    saved = views()
    assert saved.pop("means") == "changed" and max(map(len, saved.values())) < MAX_TAG_CHARACTERS
    states = {key: json.loads(json.loads(value)["state"]) for key, value in saved.items()}
    orders = {key: (state["searchFilter"], state["orderByKey"]) for key, state in states.items()}
    assert orders == {
        f"means.{task}": (f"tags.kind = 'mean' and tags.task = '{task}'", f"metrics.`test/{metric}`")
        for task, metric in ((runs[0].task.name, "accuracy"), ("synthetic_linear", "loss"))
    }


@in_empty_store
def test_what_the_suite_no_longer_has_is_archived(
    runs: list[Run], write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variant left out, and a run whose folder is gone; not if only a part of the suite is tracked."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    def names(kind: str) -> set[str]:
        return {found.info.run_name for found in logged(tmp_path, kind=kind)}

    more = [run.model_copy(update={"seed": 1}) for run in runs]
    for run in runs + more:
        write(run)
    track("quickstart", runs + more, tmp_path)
    track("quickstart", runs[:1], tmp_path)
    assert len(names("seed")) == 4 and len(names("mean")) == 2
    shutil.rmtree(tmp_path / more[0].folder)
    fedavg, others = [runs[0], more[0]], [runs[1], more[1]]
    assert runs[0].variant.name == "fedavg"
    track("quickstart", fedavg, tmp_path, suite_has=fedavg)
    assert names("seed") == {"digits_rotate/fedavg/seed0"} and names("mean") == {"fedavg on digits_rotate"}
    assert "MLflow: 3 runs archived, which quickstart no longer has" in capsys.readouterr().out
    client = MlflowClient(default_uri(tmp_path))
    archived = client.search_runs(["1"], "tags.kind = 'seed'", run_view_type=ViewType.DELETED_ONLY)
    assert {str(run.folder) for run in [*others, more[0]]} == {run.data.tags["job_key"] for run in archived}
    track("quickstart", fedavg, tmp_path, suite_has=fedavg)
    assert "archived" not in capsys.readouterr().out


@in_empty_store
def test_the_report_is_attached_once(runs: list[Run], write: Callable[..., Path], tmp_path: Path) -> None:
    write(runs[0])
    page = tmp_path / "reports" / "quickstart" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("page")
    track("quickstart", runs, tmp_path)
    first = attach("quickstart", tmp_path, tmp_path / "reports")
    assert attach("quickstart", tmp_path, tmp_path / "reports") == first
    assert len(logged(tmp_path, kind="report")) == 1
    assert [file.read_text() for file in tmp_path.glob("track/artifacts/quickstart/*/artifacts/report/index.html")] == [
        "page"
    ]


def test_a_file_that_is_no_database_is_named(runs: list[Run], tmp_path: Path) -> None:
    database = tmp_path / "track" / "mlflow.db"
    database.parent.mkdir()
    database.write_text("not a database, but longer than a header of SQLite would be\n" * 20)
    with pytest.raises(ConfigError, match=r"mlflow\.db cannot be written: file is not a database.*move the file away"):
        track("quickstart", runs, tmp_path)


def test_a_folder_that_cannot_be_made_is_named(runs: list[Run], tmp_path: Path) -> None:
    (tmp_path / "track").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match=r"track.*cannot be written"):
        create_store(default_uri(tmp_path))


def test_a_read_only_place_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sqlite:////proc/track/mlflow\.db cannot be written.*tracking_uri"):
        create_store(default_uri(Path("/proc")))  # read-only for root too


def test_processes_that_make_the_store_at_once_do_not_collide(tmp_path: Path) -> None:
    settings = environment(FLORAL_RESULTS=str(tmp_path))
    command = [BIN / "floral", "track", "--create-store"]
    both = [subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert (tmp_path / "track" / "mlflow.db").stat().st_size


def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    command = [BIN / "floral", "track", "--create-store"]
    settings = environment(FLORAL_RESULTS=str(tmp_path))
    process = subprocess.Popen(command, cwd=ROOT, env=settings)
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob("track/mlflow.db*") if path.suffix != ".lock"):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "track" / "mlflow.db").exists()
    create_store(default_uri(tmp_path))
    assert {path.name for path in (tmp_path / "track").iterdir()} == {"mlflow.db", "mlflow.db.lock"}


@in_empty_store
def test_processes_that_track_a_suite_at_once_log_each_run_once(
    runs: list[Run], write: Callable[..., Path], tmp_path: Path
) -> None:
    for run in runs:
        write(run)
    settings = environment(FLORAL_RESULTS=str(tmp_path))
    command = [BIN / "floral", "track", "quickstart", "--tasks", "digits_rotate", "--seeds", "0"]
    both = [subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(run.data.tags["job_key"] for run in logged(tmp_path)) == sorted(str(run.folder) for run in runs)


def test_the_store_that_snakemake_was_told_reaches_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They read config/config.yaml anew, which does not know what `--config` changed."""
    monkeypatch.chdir(ROOT)
    told = read_settings({"suite": "quickstart", "tracking_uri": "http://tracker:5000"})
    assert read_settings().tracking_uri is None
    for name, value in told.environment().items():
        monkeypatch.setenv(name, value)
    assert read_settings().tracking_uri == "http://tracker:5000"

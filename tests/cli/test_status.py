"""`floral status`: progress of a suite, read from its run folders."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from projects import ROOT
from run_folders import COSTS, FAILURE

from floral.cli import main
from floral.cli.status import as_text, status
from floral.config.run import Run
from floral.config.suites import suite_runs
from floral.io.locks import held
from floral.runs import segments
from floral.runs.state import FRESH_SECONDS, LOCK, running

SUMMARY = {"status": "done", "round": 200}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.chdir(ROOT)
    return suite_runs("quickstart", tasks=["digits_rotate"], variants=["fedavg", "local"])


def finish(folder: Path, seconds: float) -> None:
    folder.mkdir(parents=True)
    (folder / "costs.json").write_text(json.dumps(COSTS | {"seconds": {"setup": 0.0, "total": seconds}}))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))


def fail(folder: Path, **change: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps(FAILURE | change))


def test_each_run_is_counted_once_and_the_time_left_follows_from_the_finished_ones(
    runs: list[Run], tmp_path: Path
) -> None:
    done, failed, stopped, training, *waiting = (tmp_path / run.folder for run in runs)
    finish(done, 100.0)
    fail(failed)
    fail(stopped, reason="interrupted", exception="")
    segments.append(segments.new(training), 50, [("test", "accuracy", 0.5)])
    with held(training / LOCK, "training this run"):
        progress = status("quickstart", runs, tmp_path)
    assert {state: progress[state] for state in ("total", "done", "running", "waiting", "failed")} == {
        "total": 6, "done": 1, "running": 1, "waiting": 1 + len(waiting), "failed": 1,
    }  # fmt: skip
    assert progress["seconds_of_work"] == progress["seconds_left"] == pytest.approx(100.0 * (0.75 + 1 + len(waiting)))
    low, high = progress["seconds_range"]
    assert low < progress["seconds_left"] < high
    text = as_text(progress)
    assert "round 50 of 200" in text and "MemoryError: <none left>" in text and "left with 1 run at once" in text


def test_a_finished_suite_needs_no_time(runs: list[Run], tmp_path: Path) -> None:
    for run in runs:
        finish(tmp_path / run.folder, 1.0)
    progress = status("quickstart", runs, tmp_path)
    assert (progress["done"], progress["seconds_of_work"], progress["seconds_left"]) == (6, 0, None)
    assert as_text(progress) == "suite quickstart: 6 runs: 6 done, 0 running, 0 waiting, 0 failed"


def test_the_core_seconds_of_finished_runs_are_added_by_part(runs: list[Run], tmp_path: Path) -> None:
    """Runs of earlier versions have none: they are not counted."""
    for run, seconds in zip(runs[:3], (1.0, 2.0, None), strict=True):
        finish(folder := tmp_path / run.folder, 10.0)
        if seconds is not None:
            parts = {"start": 0.5, "data": 0.25, "trials": 0.25, "train": 3 * seconds, "evaluate": seconds, "write": 0}
            costs = json.loads((folder / "costs.json").read_text())
            (folder / "costs.json").write_text(json.dumps(costs | {"core_seconds": parts | {"total": 1 + 4 * seconds}}))
    progress = status("quickstart", runs, tmp_path)
    assert progress["core_seconds"] == {
        "start": 1.0, "data": 0.5, "trials": 0.5, "train": 9.0, "evaluate": 3.0, "write": 0.0, "total": 14.0, "runs": 2,
    }  # fmt: skip
    assert "core seconds of 2 runs that finished: training 9.0 (64%), evaluation 3.0 (21%), start" in as_text(progress)


def test_a_run_on_another_machine_is_running_while_it_writes_files(tmp_path: Path) -> None:
    segment = segments.new(tmp_path)
    segments.append(segment, 0, [("test", "loss", 1.0)])
    (tmp_path / LOCK).write_text("process 7 on another-node")
    assert running(tmp_path)
    for path in (segment, tmp_path / LOCK):
        assert running(tmp_path)
        os.utime(path, (time.time() - 2 * FRESH_SECONDS,) * 2)
    assert not running(tmp_path)


def test_a_run_of_this_machine_runs_only_while_its_lock_is_held(tmp_path: Path) -> None:
    segments.append(segments.new(tmp_path), 0, [("test", "loss", 1.0)])
    (tmp_path / LOCK).write_text(f"process 7 on {os.uname().nodename}")
    assert not running(tmp_path)


def test_the_command_prints_json(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLORAL_RESULTS", str(tmp_path))
    assert main.main(["status", "quickstart", "--tasks", "digits_rotate", "--variants", "fedavg", "--json"]) == 0
    progress = json.loads(capsys.readouterr().out)
    assert (progress["total"], progress["waiting"], progress["seconds_left"]) == (3, 3, None)
    assert progress["runs"][0]["run"] == str(runs[0].folder)

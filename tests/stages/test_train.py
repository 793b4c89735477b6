"""What a run leaves behind however it ends; the training itself is replaced."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from projects import ROOT

from floral.cli.show import show
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.suites import suite_runs
from floral.io.locks import held
from floral.runs import state
from floral.runs.state import failure_lines
from floral.stages.train import train

HOW: dict[str, Any] = {
    "device": "cpu", "runs_per_gpu": 1, "backend": "auto", "threads": 1, "checkpoint_seconds": 60,
}  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(ROOT)
    return suite_runs("quickstart", tasks=["digits_rotate"], variants=["fedavg"], seeds=[0])[0]


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def execute(*_: Any, **how: Any) -> None:
        raise error

    module = ModuleType("floral.stages.execute")
    module.__dict__["execute"] = execute
    monkeypatch.setitem(sys.modules, "floral.stages.execute", module)


@pytest.mark.parametrize(
    ("error", "reason", "line"),
    [
        (MemoryError("no more"), "out of memory", "MemoryError: no more"),
        (RuntimeError("CUDA out of memory. Tried"), "out of GPU memory", "RuntimeError: CUDA out of memory. Tried"),
        (OSError(28, "no space"), "disk full", "OSError: [Errno 28] no space"),
        (ValueError("two\nlines"), "exception", "ValueError: two"),
    ],
)
def test_a_failure_leaves_its_reason(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, line: str,
) -> None:  # fmt: skip
    ends_with(monkeypatch, error)
    assert train(run, tmp_path, **HOW) == 1
    written = json.loads((tmp_path / run.folder / "failure.json").read_text())
    assert tuple(sorted(written)) == tuple(sorted((*state.FAILURE, "run"))) and written["reason"] == reason
    assert {path.name for path in (tmp_path / run.folder).iterdir()} == {".lock", "failure.json", "log.txt"}
    (said,) = failure_lines({"quickstart": [run]}, tmp_path)
    assert f"seed 0: {line} (floral show " in said


def test_an_interrupted_run_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, **HOW)
    (said,) = failure_lines({"quickstart": [run]}, tmp_path)
    assert "seed 0: interrupted; the same command continues" in said


def test_a_mistake_is_left_to_the_command_to_say(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends_with(monkeypatch, ConfigError("too many clusters"))
    with pytest.raises(ConfigError, match="too many clusters"):
        train(run, tmp_path, **HOW)
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / run.folder / "failure.json").read_text())["reason"] == "mistake"
    show(run.folder, tmp_path)  # the run has no run.yaml yet
    shown = capsys.readouterr().out
    assert shown.startswith(f"FedAvg · {run.task.title} · seed 0 · failed\n") and "  training " in shown


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_summary_is_named_with_its_remedy(run: Run, tmp_path: Path, text: str) -> None:
    folder = tmp_path / run.folder
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(text)
    with pytest.raises(ConfigError, match=r"seed0-\w+/summary\.json: damaged .*remove this file and repeat"):
        train(run, tmp_path, **HOW)


@pytest.mark.parametrize("mark", state.STARTED)
def test_a_killed_run_has_failed(run: Run, tmp_path: Path, mark: str) -> None:
    folder = tmp_path / run.folder
    assert state.failure(folder) is None
    (folder / mark).parent.mkdir(parents=True, exist_ok=True)
    (folder / mark).write_text(f"process 7 on {os.uname().nodename}")
    (said,) = failure_lines({"quickstart": [run]}, tmp_path)
    assert (
        "seed 0: ended without a message: killed, out of memory, or power failure; the same command continues" in said
    )
    with held(folder / state.LOCK, "training this run"):
        assert state.running(folder) and state.failure(folder) is None
    (folder / "summary.json").write_text("{}")
    assert state.failure(folder) is None

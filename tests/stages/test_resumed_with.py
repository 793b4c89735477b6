"""A run continues only with the code and the precision with which it began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import ROOT
from run_folders import make_run

from floral.cli.show import lines
from floral.cli.status import status
from floral.cluster.stops import Stop, Stopped
from floral.config import code
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.settings import Settings
from floral.runs import state
from floral.runs.forget import folders_to_forget
from floral.stages import rounds
from floral.stages.execute import execute
from floral.stages.fetch import fetch
from floral.stages.partition import partition
from floral.workflow.adapter import Hooks
from floral.workflow.rules import Rules
from floral.workflow.work import Work


def trained(run: Run, results: Path) -> dict[str, Any]:
    how = {"backend": "loop", "threads": 1, "checkpoint_seconds": 1e9, "stop": Stop()}
    return execute(run, results, torch.device("cpu"), **how)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was stopped after its first round, with a checkpoint."""
    monkeypatch.chdir(ROOT)
    run = make_run("digits_rotate", "fedavg", 0)
    fetch("digits", tmp_path)
    partition(run.partition, tmp_path, run.task)
    train_round = rounds.train_round

    def stop_after_first(simulation: Any, state: Any, progress: Any) -> None:
        if progress.round == 1:
            raise Stopped(10)
        train_round(simulation, state, progress)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "train_round", stop_after_first)
        with pytest.raises(Stopped):
            trained(run, tmp_path)
    return run


def test_with_the_same_code_it_continues_and_records_the_code(begun: Run, tmp_path: Path) -> None:
    assert trained(begun, tmp_path)["status"] == "done"
    costs = json.loads((tmp_path / begun.folder / "costs.json").read_text())
    assert costs["resumptions"] == 1 and costs["code"] == code.digests("fedavg", "mlp")


def test_with_other_code_it_is_refused(
    begun: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that shows the run says so, and what to do."""
    digest = code.digest
    monkeypatch.setattr(code, "digest", lambda path: "changed" if path.endswith("fedavg.py") else digest(path))
    words = r"floral/methods/fedavg.py has changed"
    with pytest.raises(ConfigError, match=rf"last\.safetensors: this run cannot continue: {words}; remove this check"):
        trained(begun, tmp_path)
    (tmp_path / begun.folder / "failure.json").write_text(json.dumps(state.KILLED | {"reason": "interrupted"}))
    progress = status("tiny", [begun], tmp_path)
    assert (progress["waiting"], progress["failed"]) == (0, 1), "the same command does not continue"
    assert f"cannot continue: {words}; remove it: floral forget --outdated" in progress["runs"][0]["reason"]
    assert f"1 run cannot continue: {words} (fedavg)" in progress["outdated"]
    shown = "\n".join(lines(tmp_path / begun.folder))
    assert f"this run cannot continue: {words}" in shown and "the same command" not in shown
    Hooks(Rules(Work(Settings(suite=("tiny",), results=tmp_path), {"tiny": [begun]}, {}))).print_outdated()
    assert f"1 run cannot continue: {words} (fedavg)\n  to train them again: floral forget" in capsys.readouterr().err
    assert folders_to_forget([], tmp_path, only_outdated=True) == [begun.folder]
    monkeypatch.setattr(code, "digest", digest)
    assert status("tiny", [begun], tmp_path)["outdated"] == folders_to_forget([], tmp_path, only_outdated=True) == []


def test_with_another_precision_it_is_refused(begun: Run, tmp_path: Path) -> None:
    """Such a checkpoint is of a version that did not name the precision in the folder."""
    other = begun.model_copy(update={"precision": "bf16"})
    (tmp_path / begun.folder).rename(tmp_path / other.folder)
    with pytest.raises(ConfigError, match=r"cannot continue: precision fp32 was used, not bf16; remove this checkp"):
        trained(other, tmp_path)

"""What a method computes before round 1: with the device's settings, until a signal, and for many clients at once."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federations import SIZES, make_data, simulate
from run_folders import make_run

import floral.stages.execute as stage
from floral.cluster.stops import Stop, Stopped
from floral.engine.simulate import Simulation
from floral.stages.fetch import fetch
from floral.stages.partition import partition

METHODS = ["ifca", "feddbe"]
"""Methods whose clients choose or train before round 1."""


@pytest.mark.parametrize("variant", METHODS)
def test_a_signal_before_round_1_ends_the_run_there(variant: str, tmp_path: Path) -> None:
    run = make_run("digits_rotate", variant, 0)
    fetch("digits", tmp_path)
    partition(run.partition, tmp_path, run.task)
    how: dict[str, Any] = {"backend": "loop", "threads": 1, "checkpoint_seconds": 1e9}
    with pytest.raises(Stopped):
        stage.execute(run, tmp_path, torch.device("cpu"), stop=Stop(by=signal.SIGTERM, at=-math.inf), **how)
    folder = tmp_path / run.folder
    assert not list(folder.parent.glob("execution-*")), "no way of computing the rounds was chosen yet"
    assert not (folder / "checkpoint").exists()


def test_the_device_is_configured_before_clients_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def start(simulation: Simulation, private: Path | None = None) -> None:
        calls.append("start")
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(stage, "configure_device", lambda device, precision: calls.append(f"device in {precision}"))
    monkeypatch.setattr(Simulation, "start", start)
    run = make_run("digits_rotate", "feddbe", 0)
    fetch("digits", tmp_path)
    partition(run.partition, tmp_path, run.task)
    how: dict[str, Any] = {"backend": "loop", "threads": 1, "checkpoint_seconds": 1e9, "stop": Stop()}
    with pytest.raises(Stopped):
        stage.execute(run, tmp_path, torch.device("cpu"), **how)
    assert calls == ["device in fp32", "start"]


def test_all_clients_choose_at_once_whatever_the_chunks_of_the_rounds() -> None:
    simulation, sizes = simulate("ifca", data=make_data()), []

    def held(pools: np.ndarray) -> Any:
        sizes.append(len(pools))
        return Simulation.held(simulation, pools)

    simulation.held = held
    simulation.start()
    assert set(sizes) == {len(SIZES)}

"""No number moves: a small training run of every variant has the committed metrics."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import golden
import pytest


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the data and the partitions of all golden runs."""
    folder = tmp_path_factory.mktemp("golden")
    golden.prepare(folder, golden.CASES)
    return folder


@pytest.mark.parametrize("case", golden.CASES)
def test_the_metrics_of_a_golden_run_are_the_committed_ones(case: str, results: Path) -> None:
    if complaint := golden.complaint_about_metrics(case, golden.measured(golden.train(case, results))):
        pytest.fail(complaint, pytrace=False)


def test_no_measurement_of_time_decides_how_golden_runs_are_computed(results: Path) -> None:
    costs = json.loads(golden.train("fedavg", results).with_name("costs.json").read_text())
    pinned = {"backend": "loop", "chunk": 1, "workers": 1, "threads": 1, "precision": "fp32", "device": "cpu"}
    assert {key: costs["execution"][key] for key in pinned} == pinned


def test_every_committed_run_is_a_golden_run() -> None:
    gone = sorted(golden.committed_metrics()["runs"].keys() - golden.CASES.keys())
    assert not gone, f"no such variants any more: {', '.join(gone)}. Renew the file: {golden.RENEW}"


@pytest.fixture
def changed() -> dict[str, Any]:
    """The committed run of fedavg, to be changed: a change of its values also changes its digest."""
    return {**copy.deepcopy(golden.committed_metrics()["runs"]["fedavg"]), "sha256": "changed"}


@pytest.mark.parametrize("size", [1e-9, 1e-3])
def test_on_the_same_machine_every_bit_counts(
    changed: dict[str, Any], size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "machine", lambda: golden.committed_metrics()["machine"])
    changed["series"]["test loss"]["5"] += size
    complaint = golden.complaint_about_metrics("fedavg", changed)
    assert (
        complaint
        and "fedavg: the metrics of the golden run changed (1 values differ).\n  test loss, round 5: " in complaint
    )
    assert "RESULTS_VERSION" in complaint and golden.RENEW in complaint and "not the machine" not in complaint


def test_changed_numbers_under_an_unchanged_name_are_not_written(changed: dict[str, Any]) -> None:
    changed["series"]["test loss"]["5"] += 1e-3
    changed["series"]["new values"] = {"5": 1.0}
    complaint = golden.complaint_about_name("fedavg", changed, changed["hash8"])
    assert complaint and "fedavg: 1 values changed, such as test loss, round 5: " in complaint
    assert golden.complaint_about_name("fedavg", changed, "another") is None
    changed["series"]["test loss"]["5"] -= 1e-3
    assert golden.complaint_about_name("fedavg", changed, changed["hash8"]) is None


def test_on_another_machine_rounding_is_allowed_and_nothing_more(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "machine", lambda: {**golden.committed_metrics()["machine"], "torch": "9.0"})
    changed["series"]["test loss"]["5"] += 1e-6
    assert golden.complaint_about_metrics("fedavg", changed) is None
    changed["series"]["test loss"]["5"] += 1e-3
    complaint = golden.complaint_about_metrics("fedavg", changed)
    assert complaint and "not the machine that made metrics.json:\n  torch: " in complaint and "-> 9.0" in complaint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_on_another_machine_a_value_that_is_lost_is_seen(
    changed: dict[str, Any], value: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "machine", lambda: {})
    if value is None:
        del changed["series"]["test loss"]["5"]
    else:
        changed["series"]["test loss"]["5"] = value
    complaint = golden.complaint_about_metrics("fedavg", changed)
    assert complaint and "test loss, round 5: " in complaint

"""Runs made by other code are found, and `forget` removes runs and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from projects import ROOT
from run_folders import make_run, write_run

from floral.config import code
from floral.config.reading import ConfigError
from floral.io.locks import held
from floral.runs.forget import folders_to_forget, forget
from floral.runs.outdated import REMEDY, outdated, outdated_lines
from floral.runs.state import LOCK

RUNS = [make_run("digits_rotate", variant, seed) for variant in ("fedavg", "floral_1") for seed in (0, 1)]
FEDAVG, FLORAL = "floral/methods/fedavg.py", "floral/methods/floral.py"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for run in RUNS:
        recorded = code.digests(run.variant.method, "mlp")
        change_costs(write_run(tmp_path, run), code=recorded)
        (tmp_path / run.folder / "done").touch()


def change_costs(folder: Path, **change: object) -> None:
    costs = json.loads((folder / "costs.json").read_text())
    (folder / "costs.json").write_text(json.dumps(costs | change))


def made_with_other_code(tmp_path: Path, *indices: int) -> None:
    for run in (RUNS[index] for index in indices):
        recorded = code.digests(run.variant.method, "mlp") | {f"floral/methods/{run.variant.method}.py": "00000000"}
        change_costs(tmp_path / run.folder, code=recorded)


def test_runs_of_other_code_are_named_with_the_remedy(tmp_path: Path) -> None:
    assert outdated(RUNS, tmp_path) == {} and outdated_lines(RUNS, outdated(RUNS, tmp_path)) == []
    made_with_other_code(tmp_path, 0, 1)
    recorded = code.digests("floral", "mlp")
    change_costs(tmp_path / RUNS[2].folder, code={path: digest for path, digest in recorded.items() if path != FLORAL})
    assert outdated(RUNS[2:], tmp_path) == {RUNS[2].folder: [f"{FLORAL} is used now, but was not then"]}
    change_costs(tmp_path / RUNS[2].folder, code=recorded)
    assert outdated(RUNS, tmp_path) == {run.folder: [f"{FEDAVG} has changed"] for run in RUNS[:2]}
    assert outdated_lines(RUNS, outdated(RUNS, tmp_path)) == [
        f"2 runs made by other code: {FEDAVG} has changed (fedavg)",
        f"  {REMEDY}",
    ]


def test_runs_without_digests_count_as_runs_of_today(tmp_path: Path) -> None:
    costs = json.loads((tmp_path / RUNS[0].folder / "costs.json").read_text())
    del costs["code"]
    (tmp_path / RUNS[0].folder / "costs.json").write_text(json.dumps(costs))
    assert outdated(RUNS, tmp_path) == {}


def test_a_run_of_an_earlier_version_in_another_precision_is_named(tmp_path: Path) -> None:
    change_costs(tmp_path / RUNS[0].folder, execution={"precision": "bf16"})
    assert outdated(RUNS, tmp_path) == {RUNS[0].folder: ["precision bf16 was used, not fp32"]}


def test_forget_removes_the_runs_of_a_variant_or_task_and_no_other(tmp_path: Path) -> None:
    search = tmp_path / "tune" / "digits_rotate" / "fedavg" / "12345678"
    search.mkdir(parents=True)
    (search / "done").touch()
    folders = folders_to_forget(["fedavg"], tmp_path, only_outdated=False)
    assert sorted(folders) == sorted([*(run.folder for run in RUNS[:2]), search.relative_to(tmp_path)])
    forget(folders, tmp_path)
    assert not search.exists() and not (tmp_path / RUNS[0].folder).parent.exists()
    assert all((tmp_path / run.folder / "done").exists() for run in RUNS[2:])
    assert set(folders_to_forget(["digits_rotate"], tmp_path, only_outdated=False)) == {run.folder for run in RUNS[2:]}


def test_only_outdated_runs_can_be_forgotten(tmp_path: Path) -> None:
    made_with_other_code(tmp_path, 1, 3)
    assert folders_to_forget([], tmp_path, only_outdated=True) == [RUNS[1].folder, RUNS[3].folder]
    assert folders_to_forget(["floral_1"], tmp_path, only_outdated=True) == [RUNS[3].folder]
    forget(folders_to_forget([], tmp_path, only_outdated=True), tmp_path)
    assert folders_to_forget([], tmp_path, only_outdated=True) == []


def test_runs_of_an_earlier_version_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have other names than the runs of today, so that they never meet them."""
    made_with_other_code(tmp_path, 0, 1, 2)
    real = code.versions
    monkeypatch.setattr(code, "versions", lambda method, model: {"v": 2} if method == "fedavg" else real(method, model))
    assert folders_to_forget([], tmp_path, only_outdated=True) == [RUNS[2].folder]


def test_an_unknown_name_and_a_running_run_are_refused_before_anything_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown variant or task 'fedavgg'; did you mean 'fedavg'\?"):
        folders_to_forget(["fedavgg"], tmp_path, only_outdated=False)
    assert folders_to_forget(["ditto"], tmp_path, only_outdated=False) == [], "a variant without runs is no mistake"
    with (
        held(tmp_path / RUNS[1].folder / LOCK, "training this run"),
        pytest.raises(ConfigError, match=rf"{RUNS[1].folder}: a process is working on this run; stop it"),
    ):
        folders_to_forget(["fedavg"], tmp_path, only_outdated=False)

"""A study and results of an earlier version work without a change: `tests/releases/VERSION` has a copy of each.

If a test fails because the change is meant, raise INTERFACE_VERSION (for the study) or RESULTS_VERSION (for the
results), name the change in CHANGELOG.md, and add the study of the new version beside this one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from projects import BIN, environment

from floral.config.plugins import INTERFACE_VERSION
from floral.config.reading import ConfigError
from floral.config.settings import read_settings

HERE = Path(__file__).parent
VERSIONS = ["0.1"]


@pytest.fixture(params=VERSIONS)
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / request.param, tmp_path / "study"))


def said(study: Path, *command: str, results: str = "finished") -> str:
    variables = environment(FLORAL_RESULTS=results, FLORAL_REPORTS="reports")
    call = subprocess.run(
        [BIN / "floral", *command], cwd=study, env=variables, capture_output=True, text=True, timeout=300
    )
    assert call.returncode == 0, (command, call.stdout, call.stderr)
    return call.stdout


def test_finished_runs_keep_their_names_and_are_reported(study: Path) -> None:
    state = json.loads(said(study, "status", "flowers", "--json"))
    assert (state["done"], state["total"], state["outdated"]) == (2, 12, [])
    said(study, "report", "flowers", "--partial")
    summary = pl.read_parquet(study / "reports/flowers/summary.parquet").filter(pl.col("status") == "done")
    assert sorted(summary["variant"]) == ["fedavg", "lg_fedavg"]
    for row in summary.iter_rows(named=True):
        (path,) = study.glob(f"finished/train/flowers/{row['variant']}/*/summary.json")
        assert json.loads(path.read_text())["test_accuracy"] == row["test_accuracy"]


def test_the_method_of_the_study_still_trains_to_the_same_numbers(study: Path) -> None:
    said(study, "fetch", "flowers", "--suite", "flowers", results="again")
    said(study, "partition", "--suite", "flowers", "--task", "flowers", "--seed", "0", results="again")
    run = ["--suite", "flowers", "--task", "flowers", "--variant", "lg_fedavg", "--seed", "0"]
    said(study, "train", *run, "--backend", "loop", results="again")
    before, after = (
        pl.read_parquet(next(study.glob(f"{results}/train/flowers/lg_fedavg/seed0-*/metrics.parquet")))
        for results in ("finished", "again")
    )
    assert before.columns == after.columns and len(before) == len(after)
    difference = (before["value"] - after["value"]).abs().max()
    assert isinstance(difference, float) and difference < 1e-3


def test_a_study_for_another_interface_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(f"interface: {INTERFACE_VERSION + 1}\n")
    monkeypatch.setattr("floral.config.paths.CONFIG_FOLDER", tmp_path / "config")
    with pytest.raises(
        ConfigError, match=rf"config\.yaml: interface: this version of floral has the interface {INTERFACE_VERSION}; "
    ):
        read_settings()

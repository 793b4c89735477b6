"""A run with committed results is computed as these were, so that the same bits come out again."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import ROOT

from floral.cluster.stops import Stop
from floral.config import catalogue
from floral.config.run import Run
from floral.runs.core_seconds import PARTS
from floral.stages.execute import execute
from floral.stages.fetch import fetch
from floral.stages.partition import partition

PINNED = {"backend": "vmap", "chunk": 3, "workers": 1, "threads": 1, "precision": "fp32", "device": "cpu"}
"""No measurement proposes chunks of three clients."""


def trained(results: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """The folder of a small run, trained with the backend `auto`, and its execution."""
    values = {"clients": 8, "clusters": 2, "rounds": 2, "participation": 1.0}
    run = Run(
        task=catalogue.task("digits_rotate", values), variant=catalogue.variant("fedavg"), seed=seed,
        fidelity=catalogue.fidelity("corrected"),
    )  # fmt: skip
    fetch(run.task.data, results)
    partition(run.partition, results, run.task)
    how: dict[str, Any] = {"backend": "auto", "threads": 1, "checkpoint_seconds": 1e9}
    execute(run, results, torch.device("cpu"), stop=Stop(), **how)
    costs = json.loads((results / run.folder / "costs.json").read_text())
    seconds = costs["core_seconds"]
    assert min(seconds.values()) > 0 and seconds["total"] == pytest.approx(sum(seconds[part] for part in PARTS))
    return run.folder, costs["execution"]


def test_auto_trains_committed_runs_and_their_other_seeds_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    folder, measured = trained(Path("here"), 0)
    assert measured["chunk"] != PINNED["chunk"], "nothing is committed yet"
    archive = Path("reports/reference/tiny/runs.zip")
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{folder}/costs.json", json.dumps({"execution": PINNED}))
    metrics = set()
    for place, seed in (("first", 0), ("second", 0), ("first", 1)):
        folder, execution = trained(Path(place), seed)
        assert {key: execution[key] for key in PINNED} == PINNED
        assert execution["reason"] == "as in the committed results of this run"
        if seed == 0:
            metrics.add((Path(place) / folder / "metrics.parquet").read_bytes())
    assert len(metrics) == 1

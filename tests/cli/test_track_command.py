"""`floral track` on a part of a suite whose other variants are not tuned yet."""

from __future__ import annotations

import shutil
from pathlib import Path

from projects import Project

PARTLY_TUNED = """
title: Partly tuned
about: Only one variant is ready.
runs:
  - {tasks: [digits_rotate], variants: [fedavg], seeds: [0, 1], task: {rounds: 2}}
  - {tasks: [digits_rotate], variants: [floral_1], seeds: [0, 1], task: {rounds: 3}, tuned: true}
"""


def test_the_tuned_part_of_a_suite_is_tracked(tmp_path: Path, made_store: Path) -> None:
    project = Project.made(tmp_path, partly=PARTLY_TUNED)
    shutil.copytree(made_store, tmp_path / "results" / "track")
    for seeds, runs in (((), "2 runs"), (("--seeds", "1"), "1 run")):
        done = project.call("floral", "track", "partly", "--variants", "fedavg", *seeds)
        assert f"MLflow: logging {runs} of partly" in done.stdout, done.stdout
        assert done.returncode == 0, done.stdout
    done = project.call("floral", "track", "partly")
    assert done.returncode == 2 and "tune with:" in done.stdout and "Traceback" not in done.stdout

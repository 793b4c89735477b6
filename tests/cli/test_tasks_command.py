"""`floral tasks`: every task by data set, what is inexact, and which data are at hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from projects import ROOT

from floral.cli import main, tasks
from floral.cli.paragraphs import COLUMNS
from floral.config import catalogue, data_sets, paths
from floral.config.refresh import CACHES
from floral.runs.missing_data import why_missing


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FLORAL_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("FLORAL_DATA", raising=False)


@pytest.fixture
def row(tmp_path: Path) -> Callable[..., tasks.Row]:
    def of(task: str, data_dir: Path | None = None) -> tasks.Row:
        return {row.task: row for row in tasks.rows(tmp_path / "results", data_dir)}[task]

    return of


def test_every_task_is_listed_once_sorted_by_data_set(tmp_path: Path) -> None:
    rows = tasks.rows(tmp_path)
    assert sorted(row.task for row in rows) == catalogue.names("tasks")
    assert [row.data for row in rows] == sorted(row.data for row in rows)


def test_a_task_is_listed_with_its_clients_rounds_and_model(row: Callable[..., tasks.Row]) -> None:
    digits = row("digits_dirichlet")
    assert (digits.clients, digits.clusters, digits.cohort, digits.rounds) == (20, 4, 10, 100)
    assert (digits.shift, digits.partition) == ({"kind": "none"}, {"kind": "dirichlet", "alpha": 0.1})
    assert digits.model == {"kind": "mlp", "hidden": 64}


def test_data_are_at_hand_if_files_of_their_names_exist(row: Callable[..., tasks.Row], tmp_path: Path) -> None:
    assert row("synthetic_linear").at_hand == "no files needed"
    assert row("digits_rotate").at_hand == "found"  # inside an installed package
    assert row("mnist_rotate").at_hand == "to download"

    first, *others = data_sets.data_lock()["cifar10_jpeg90"].files
    (tmp_path / first.path).parent.mkdir(parents=True)
    (tmp_path / first.path).touch()
    lacking = row("cifar10_rotate", tmp_path)
    assert lacking.at_hand == "missing" and lacking.exact is False
    assert first.path not in lacking.remedy and all(file.path in lacking.remedy for file in others)
    assert "FLORAL_DATA" in lacking.remedy
    for file in others:
        (tmp_path / f"{file.path}.gz").touch()
    assert row("cifar10_rotate", tmp_path).at_hand == "found"

    manifest = tmp_path / "results" / "data" / "cifar10_jpeg90" / "card.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert row("cifar10_rotate").at_hand == "fetched"


def test_custom_data_are_found_at_the_path_of_the_task(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.zeros((2, 3)), y=np.arange(2))
    own = {"kind": "arrays", "path": str(tmp_path / "mine.npz")}
    task = catalogue.task("digits_rotate", {"data": own, "shift": {"kind": "none"}})
    row = tasks._row(task, tmp_path / "results", None)
    assert (row.data, row.at_hand) == (f"custom arrays {tmp_path / 'mine.npz'}", "found")
    assert "floral fetch own-" in (why_missing(task, tmp_path / "results") or "")


def test_text_and_json_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["tasks"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    (head,) = [" ".join(part.split()) for part in out.split("\n\n") if part.startswith("cifar10_jpeg90: ")]
    assert "missing: cifar10/" in head and "INEXACT: Every image was encoded once as JPEG" in head
    (line,) = [line for line in lines if line.startswith("  mnist_rotate ")]
    assert line.split()[1:5] == ["300", "4", "30", "500"] and line.endswith("MNIST, rotated per cluster")
    assert main.main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    (mnist,) = [row for row in rows if row["task"] == "mnist_rotate"]
    assert mnist["exact"] and mnist["at_hand"] == "to download" and mnist["model"]["hidden"] == 200


def test_a_task_is_printed_with_what_it_extends(capsys: pytest.CaptureFixture[str]) -> None:
    """Below each file stand the keys that it decides."""
    assert main.main(["tasks", "cifar10_resnet"]) == 0
    _, own, reduced, rotate, _ = capsys.readouterr().out.split("\n\n")
    assert own.splitlines()[0].endswith("cifar10_resnet.yaml") and "model: {kind: resnet18, channels: [" in own
    assert reduced.splitlines()[0].endswith("cifar10_rotate_reduced.yaml (extended by cifar10_resnet)")
    assert "    rounds: 1500\n" in reduced and "partition: {share: 0.05, min_rows: 10}" in reduced
    assert "    clusters: 4\n" in rotate and "rounds" not in rotate and "model" not in rotate


def forget() -> None:
    for cached in CACHES:
        cached.cache_clear()


def test_a_task_with_a_mistake_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(paths, "CONFIG_FOLDER", tmp_path / "config")
    (tmp_path / "config/tasks").mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("suite: quickstart\n")
    for name in ("parameters.yaml", "data.lock", "tasks/digits_rotate.yaml"):  # all that is read
        shutil.copy(ROOT / "config" / name, tmp_path / "config" / name)
    (tmp_path / "config/tasks/wider.yaml").write_text("extends: digits_rotate\ntitle: Wider\nmodel: {hidden: 256}\n")
    (tmp_path / "config/tasks/wrong.yaml").write_text("extends: digits_rotate\nround: 3\n")
    forget()
    message = "wrong.yaml: unknown key 'round'; did you mean 'rounds'?"
    assert main.main(["tasks"]) == 0
    good, _, bad = capsys.readouterr().out.partition("Tasks whose files have a mistake")
    assert "  digits_rotate " in good and message in " ".join(bad.split())
    assert main.main(["tasks", "--json"]) == 0
    *_, wrong = json.loads(capsys.readouterr().out)
    assert wrong["task"] == "wrong" and message in wrong["error"]
    assert main.main(["tasks", "wrong"]) == main.MISTAKE
    assert main.main(["tasks", "wider"]) == 0
    assert "model: {kind: mlp, hidden: 256}  # with values of the files below" in capsys.readouterr().out
    forget()


def test_lists_of_classes_are_counted_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["tasks"])
    table = capsys.readouterr().out
    assert "class_groups, 20 groups" in table and "[[" not in table

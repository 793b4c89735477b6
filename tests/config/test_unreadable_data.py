"""One data set that cannot be read stops its own task alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from projects import Project

from floral.cli import tasks
from floral.config import catalogue, data_sets
from floral.config.reading import ConfigError
from floral.config.suites import custom_data, suite_runs
from floral.data.sources import DataError
from floral.io import files
from floral.stages import check_data
from floral.stages.fetch import fetch

TASK = """
title: Mine
data: {{kind: {kind}, path: '{path}'}}
clients: 2
clusters: 1
participation: 1.0
rounds: 1
batch: 4
lr: 0.1
router_lr: 0.1
partition: {{min_rows: 1}}
model: {{kind: mlp, hidden: 4}}
"""
SUITE = "title: S\nruns:\n  - {{tasks: [{tasks}], variants: [fedavg], seeds: [0]}}\n"


def images(root: Path) -> Path:
    for row in range(12):
        path = root / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 20 * row).save(path)
    return root


def archive(root: Path) -> Path:
    np.savez(path := root.with_suffix(".npz"), x=np.zeros((12, 4), np.float32), y=np.arange(12) % 2)
    return path


def parquet(root: Path) -> Path:
    pl.DataFrame({"a": [0.5, 1.5] * 6, "y": [0, 1] * 6}).write_parquet(path := root.with_suffix(".parquet"))
    return path


def latin(root: Path) -> Path:
    (images(root) / "a" / "0.png").rename(root / "a" / os.fsdecode(b"fr\xeane.png"))
    return root


def latin_class(root: Path) -> Path:
    (images(root) / os.fsdecode(b"fr\xeane")).mkdir()
    return root


def latin_above(root: Path) -> Path:
    (images(root) / "a").rename(root / os.fsdecode(b"\xe9t\xe9"))
    return root


def pipe(root: Path) -> Path:
    os.mkfifo(images(root) / "a" / "pipe.png")
    return root


def dead_link(root: Path) -> Path:
    (images(root) / "a" / "gone.png").symlink_to(root / "nowhere")
    return root


def huge(root: Path) -> Path:
    root.mkdir()
    with (root / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)})
    np.save(root / "y.npy", np.arange(4))
    return root


ODD: list[tuple[str, Callable[[Path], Path], str]] = [
    ("folder", latin, r"'.*/a/fr\\udceane\.png': this name is not in UTF-8; remedy: rename the file or folder"),
    ("folder", latin_class, r"'.*/fr\\udceane': this name is not in UTF-8; remedy: rename"),
    ("folder", latin_above, r"'.*/\\udce9t\\udce9': this name is not in UTF-8; remedy: rename"),
    ("folder", pipe, r"pipe\.png is a device, a pipe or a socket, and no file; remedy: remove it"),
    ("folder", dead_link, r"gone\.png.* cannot be read: No such file or directory.* remedy: put it there"),
    ("table", lambda root: Path("/dev/zero"), r"/dev/zero is a device, a pipe or a socket, and no file"),
    (
        "folder",
        lambda root: Path("~nobody-has-this-name/x"),
        r"~nobody-has-this-name/x.*(does not exist|No such file).* remedy: put",
    ),
    ("folder", lambda root: Path("a" * 5000), r"aaaa.* cannot be read: File name too long"),
    ("arrays", huge, r"announces an array of shape \[1000000000000, 4\]"),
]


def declared(name: str, kind: str, path: Path, write: Callable[..., None]) -> None:
    label = {"label": "y"} if kind == "table" else {}
    write(f"tasks/{name}", extends="digits_dirichlet", title="M", data={"kind": kind, "path": str(path), **label})


def test_data_that_cannot_be_read_stop_their_own_task_alone(tmp_path, write) -> None:
    for at, (kind, make, _) in enumerate(ODD):
        declared(f"mine{at}", kind, make(tmp_path / str(at)), write)
    names, results = [f"mine{at}" for at in range(len(ODD))], tmp_path / "results"
    rows = {row.task: row for row in tasks.rows(results)}
    assert rows["mnist_rotate"].at_hand != "missing"
    run = {"variants": ["fedavg"], "seeds": [0]}
    write("suites/other", title="O", runs=[{"tasks": ["synthetic_linear"], **run}])
    write("suites/all", title="A", runs=[{"tasks": ["synthetic_linear", *names], **run}])
    check_data.check([run.task for run in suite_runs("other")], results)
    with pytest.raises(ConfigError) as caught:
        check_data.check([run.task for run in suite_runs("all")], results)
    assert str(caught.value).encode()
    for name, (kind, _, message) in zip(names, ODD, strict=True):
        # `floral tasks` opens no archive, so a broken one is found there
        assert rows[name].at_hand == ("found" if kind == "arrays" else "missing"), name
        lines = [line for line in str(caught.value).splitlines() if f"config/tasks/{name}.yaml: `data" in line]
        assert len(lines) == 1 and re.search(message, lines[0]), (name, caught.value)
        with pytest.raises(DataError, match=rf"(?s){message}"):
            fetch(catalogue.task(name).data, results)


def test_all_tasks_with_wrong_data_are_named_and_the_others_are_stored(tmp_path, write) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.csv").write_text("a;b\n")
        write(f"tasks/{name}", extends="digits_dirichlet", title="M",
              data={"kind": "table", "path": str(tmp_path / f"{name}.csv"), "label": "y"})  # fmt: skip
    write("tasks/good", extends="digits_dirichlet", title="M", clients=2, clusters=1,
          data={"kind": "folder", "path": str(images(tmp_path / "images"))})  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"(?s)tasks/first\.yaml: .*first\.csv.*\n.*tasks/second\.yaml: .*second\.csv"
    ):
        check_data.check([catalogue.task(name) for name in ("first", "second", "good")], tmp_path / "results")
    stored = str(data_sets.stored_data(catalogue.task("good").data))
    assert (tmp_path / "results" / "data" / stored / "card.json").exists()
    assert custom_data(stored) == catalogue.task("good").data, "other tasks that cannot be read are passed over"


def test_the_hash_of_a_folder_is_that_of_earlier_versions(tmp_path) -> None:
    root = tmp_path / "mine"
    for name, content in (("b/2.txt", b"two"), ("a/é.txt", b"one"), (".hidden", b"no"), ("a/.x/y", b"no")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    assert files.content_sha256(root) == "081209cff57b90acc59d547406f6812fc28403674465c70db6a71bb862155efe"


@pytest.mark.parametrize(
    ("kind", "files", "reads"),
    [
        ("folder", images, "floral.data.custom.images.pixels"),
        ("arrays", archive, "numpy.lib.format.read_array"),
        ("table", parquet, "floral.data.custom.cells.subprocess.run"),
    ],
)
def test_memory_that_does_not_suffice_is_said(tmp_path, write, monkeypatch, kind, files, reads) -> None:
    declared("mine", kind, files(tmp_path / "odd"), write)

    def too_much(*arguments: Any, **options: Any) -> Any:
        if kind == "table":  # the process that reads a parquet file first
            return subprocess.CompletedProcess((), -signal.SIGKILL, b"", b"")
        raise MemoryError

    monkeypatch.setattr(reads, too_much)
    with pytest.raises(
        DataError, match=r"odd(\.npz|\.parquet)?: these data do not fit into memory; remove samples, or use"
    ):
        fetch(catalogue.task("mine").data, tmp_path / "results")


def test_commands_go_on_beside_a_file_that_cannot_be_read(tmp_path) -> None:
    """`floral tasks`, `floral plan` and Snakemake with allow_missing: no traceback, and other runs are made."""
    project = Project.made(tmp_path, both=SUITE.format(tasks="broken, latin, good"), good=SUITE.format(tasks="good"))
    folder = tmp_path / "config" / "tasks"
    for name, kind, path in (
        ("good", "folder", images(tmp_path / "images")), ("latin", "folder", latin(tmp_path / "latin")),
        ("broken", "arrays", huge(tmp_path / "broken")),
    ):  # fmt: skip
        (folder / f"{name}.yaml").write_text(TASK.format(kind=kind, path=path))
    listed = project.call("floral", "tasks")
    in_one_line = " ".join(listed.stdout.split())
    assert listed.returncode == 0 and "is not in UTF-8; remedy: rename" in in_one_line, listed.stdout
    assert project.call("floral", "plan", "good").returncode == 0
    refusal = project.call("floral", "plan", "both")
    assert refusal.returncode == 2 and "Traceback" not in refusal.stdout
    assert "tasks/latin.yaml: `data.path`: " in refusal.stdout and "tasks/broken.yaml: `data`: " in refusal.stdout
    done = project.call("snakemake", "-n", "--profile", "local", "--config", "suite=both", "allow_missing=true")
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
    assert "left out: latin)" in done.stdout and "left out: broken)" in done.stdout, done.stdout

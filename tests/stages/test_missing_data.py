"""`allow_missing=true`: runs whose data cannot be had are left out and named; without it they fail as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from printed import read_page
from projects import TINY, Project
from run_folders import make_run, write_run

from floral.config.reading import ConfigError
from floral.runs.missing_data import FETCH_ERROR, split_by_data, why_missing
from floral.stages import fetch_missing

LACKING = "cifar10/plain_text/train-00000-of-00001.parquet"
REMEDY = "remedy: put cifar10/plain_text/train-00000-of-00001.parquet or"


def test_what_cannot_be_had_is_left_out_and_named_at_the_start_the_end_and_on_the_page(copy: Project) -> None:
    some = f"{TINY}  - {{tasks: [cifar10_rotate], variants: [fedavg, floral_1], seeds: [0], task: {{rounds: 1}}}}\n"
    (copy.folder / "config/suites/some.yaml").write_text(some)
    call = ("snakemake", "--profile", "local", "results/report/some.complete", "--config")
    done = copy.call(*call, "suite=some", "allow_missing=true")
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("suite some: data missing: ")]
    assert len(lines) == 2 and lines[0] == lines[1], done.stdout
    assert LACKING in lines[0] and REMEDY in lines[0] and "(2 runs left out: cifar10_rotate)" in lines[0]
    page = read_page(copy.folder / "reports/some/index.html")
    assert "Data missing:</strong>" in page and REMEDY in page
    assert "allow_missing=true" in page
    again = copy.call(*call, "suite=some", "allow_missing=true")
    assert "Nothing to be done" in again.stdout and lines[0] in again.stdout, again.stdout


def test_a_run_is_left_out_only_if_its_data_are_needed_and_not_there(tmp_path: Path) -> None:
    made, drawn, lost = (
        make_run(task, "fedavg", 0) for task in ("mnist_rotate", "synthetic_linear", "mnist_label_shift")
    )
    write_run(tmp_path, made)
    kept, lines = split_by_data([made, drawn, lost], tmp_path)
    assert kept == [made, drawn]
    assert lines == [
        "data missing: mnist: not fetched yet; remedy: floral fetch mnist (1 run left out: mnist_label_shift)"
    ]
    with pytest.raises(ConfigError, match=r"no run is left, because the data .*:\ndata missing: mnist"):
        split_by_data([lost], tmp_path)


FLOWERS = """
title: Flowers
data: {kind: table, path: flowers.csv, label: kind, client: site}
partition: {kind: natural, min_rows: 1}
clients: 3
clusters: 1
participation: 1.0
rounds: 1
batch: 8
lr: 0.1
router_lr: 0.1
model: {kind: mlp, hidden: 8}
"""


def test_own_data_that_are_not_there_are_left_out_or_stop_the_call_before_any_job(project: Project) -> None:
    (project.folder / "config/tasks/flowers.yaml").write_text(FLOWERS)
    block = "{tasks: [digits_rotate, flowers], variants: [fedavg], seeds: [0]}"
    (project.folder / "config/suites/own.yaml").write_text(f"title: Own\nruns:\n  - {block}\n")
    call, why = ("snakemake", "-n", "--profile", "local", "--config", "suite=own"), "flowers.csv does not exist"
    refused = project.call(*call)
    assert refused.returncode == 1 and f"{why}; remedy: put it there" in refused.stdout, refused.stdout
    assert "config/tasks/flowers.yaml: `data.path`: " in refused.stdout and "digits_rotate" not in refused.stdout
    done = project.call(*call, "allow_missing=true")
    assert done.returncode == 0 and f"{why}; remedy: put it there" in done.stdout, done.stdout
    assert "suite own: data missing: " in done.stdout and "(1 run left out: flowers)" in done.stdout


def test_the_reason_goes_once_the_data_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLORAL_DATA", raising=False)
    task = make_run("digits_rotate", "fedavg", 0).task
    note = tmp_path / "data" / "digits" / FETCH_ERROR
    note.parent.mkdir(parents=True)
    note.write_text("digits/digits.csv.gz: gone\n  tried package: no\n  remedy: look again")
    assert why_missing(task, tmp_path) == "digits/digits.csv.gz: gone; remedy: look again"
    fetch_missing.try_to_fetch([task], tmp_path, None)
    assert why_missing(task, tmp_path) is None and not note.exists()

"""A suite with `tuned: true`, from the first call that says what is missing to the report of tuned runs."""

from __future__ import annotations

import polars as pl
import yaml
from printed import read_page
from projects import Project

SUITE = """
title: Tiny
runs:
  - tuned: true
    tasks: [digits_rotate]
    variants: [fedavg]
    seeds: [0]
    task: &tiny {rounds: 4, clients: 4, clusters: 2}
  - {tasks: [digits_rotate], variants: [fedavg, constant], seeds: [0], task: *tiny}
"""


def test_values_are_missing_then_searched_then_used(project: Project) -> None:
    config = project.folder / "config"
    (config / "suites/tiny.yaml").write_text(SUITE)
    (config / "search/fedavg.yaml").write_text("{}")
    rule = yaml.safe_load((config / "tuning.yaml").read_text())
    (config / "tuning.yaml").write_text(yaml.safe_dump({**rule, "budget": 3, "tasks": {}}))
    committed = config / "tuned/digits_rotate.yaml"
    committed.unlink(missing_ok=True)

    first = project.snakemake()
    assert first.returncode != 0 and not (project.folder / "results/train").exists()
    assert "config/tuned/digits_rotate.yaml: no tuned values yet: fedavg" in first.stdout, first.stdout
    assert "tune with: snakemake --profile local tuned --config suite=tiny" in first.stdout

    searched = project.call("snakemake", "--profile", "local", "tuned", "--config", "suite=tiny")
    assert searched.returncode == 0, searched.stdout
    entry = yaml.safe_load(committed.read_text())["fedavg"]
    assert (entry["budget"], entry["rounds"], len(entry["losses"])) == (3, 2, 3)
    assert not (project.folder / "results/train").exists()

    again = project.call("snakemake", "--profile", "local", "tuned", "--config", "suite=tiny")
    assert again.returncode != 0 and "nothing to tune" in again.stdout, again.stdout

    done = project.snakemake("--until", "report")
    assert done.returncode == 0, done.stdout
    summary = pl.read_parquet(project.folder / "reports/tiny/summary.parquet")
    assert summary.filter("tuned")["variant"].to_list() == ["fedavg"] and summary.height == 3
    runs = [yaml.safe_load(path.read_text()) for path in project.paths("results/train/*/fedavg/*/run.yaml")]
    assert [run["own_rates"] for run in runs if run["own_rates"]] == [entry["rates"]]
    page = read_page(project.folder / "reports/tiny/index.html")
    assert 'id="tuning"' in page and "3 candidates for every method, seed 1000, 2 of 4 rounds" in page

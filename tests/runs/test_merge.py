"""floral merge: finished runs of other machines join, nothing that is here is replaced, every conflict is named."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from run_folders import make_run, write_run

from floral.cli import main
from floral.config.reading import ConfigError
from floral.config.run import RESULTS_VERSION
from floral.runs.merge import merge


@pytest.fixture
def machines(tmp_path: Path):
    """Two results folders, with one run of each seed of their own and one that both made."""
    here, there = tmp_path / "here", tmp_path / "there"
    made = {}
    for results, seeds in ((here, (0, 1)), (there, (1, 2))):
        for seed in seeds:
            made[results.name, seed] = complete(write_run(results, make_run("digits_rotate", "fedavg", seed)), seed)
    return here, there, made


def complete(folder: Path, seed: int, *, commit: str = "abc") -> Path:
    """What these runs lack of real ones: the digest of their partition and the version of the code."""
    run = yaml.safe_load((folder / "run.yaml").read_text())
    run |= {"results_version": RESULTS_VERSION, "hash8": folder.name.split("-")[1]}
    run["partition"] = {"folder": f"partition/digits_rotate/seed{seed}", "digest": f"rows {seed}"}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    costs = json.loads((folder / "costs.json").read_text())
    costs |= {"git_commit": commit, "versions": {**costs.get("versions", {}), "floral": "1"}}
    (folder / "costs.json").write_text(json.dumps(costs))
    (folder / "done").write_text("done\n")
    return folder


def change(path: Path, **values) -> None:
    content = yaml.safe_load(path.read_text())
    path.write_text(json.dumps(content | values))


def test_finished_runs_are_copied_once(machines):
    here, there, made = machines
    new = made["there", 2]
    (new / "segments").mkdir()
    (new / "segments" / "1.jsonl").write_text("{}\n")
    (new / "checkpoint").mkdir()
    (new / "checkpoint" / "last.safetensors").write_bytes(b"left behind")
    target = here / new.relative_to(there)
    (target / "checkpoint").mkdir(parents=True)  # begun here, too
    (target / "failure.json").write_text("{}")
    merged = merge([there], here)
    assert [path.name for path in merged.copied] == [new.name]
    assert [path.name for path in merged.identical] == [made["there", 1].name] and not merged.conflicts
    for path in new.rglob("*"):
        if path.is_file() and "checkpoint" not in path.parts:
            assert (target / path.relative_to(new)).read_bytes() == path.read_bytes()
    assert not (target / "checkpoint").exists() and not (target / "failure.json").exists()
    assert merge([there], here).copied == []


def test_unfinished_runs_stay_where_they_are(machines):
    here, there, made = machines
    (made["there", 2] / "summary.json").unlink()
    merged = merge([there], here)
    assert [path.name for path in merged.unfinished] == [made["there", 2].name] and not merged.copied


def test_other_numbers_for_one_run_are_a_conflict_and_those_here_stay(machines, capsys, monkeypatch):
    here, there, made = machines
    path = made["there", 1] / "metrics.parquet"
    pl.read_parquet(path).with_columns(pl.col("value") + 1).write_parquet(path)
    before = (made["here", 1] / "metrics.parquet").read_bytes()
    monkeypatch.setenv("FLORAL_RESULTS", str(here))
    assert main.main(["merge", str(there)]) == 1
    said = capsys.readouterr().out
    assert "1 copied, 0 already here with the same numbers, 0 unfinished and left out, 1 in conflict" in said
    assert f"{made['here', 1].name.split('-')[1]}: " in said and "have different metrics for the same run" in said
    assert (made["here", 1] / "metrics.parquet").read_bytes() == before


def test_rows_that_differ_are_a_conflict(machines):
    here, there, _ = machines
    other = complete(write_run(there, make_run("digits_rotate", "local", 0)), 0)
    change(other / "run.yaml", partition={"folder": "partition/digits_rotate/seed0", "digest": "others"})
    (said,) = merge([there], here).conflicts
    assert (
        other.name.split("-")[1] in said
        and "partition/digits_rotate/seed0 has other samples there (others) than in the merged results (rows 0)" in said
    )


def test_data_that_differ_under_one_name_are_a_conflict(machines):
    """As those of which config/data.lock promises no content may."""
    here, there, made = machines
    other = complete(write_run(there, make_run("digits_rotate", "local", 0)), 0)
    for folder, digest in ((made["here", 0], "mine"), (other, "theirs")):
        change(folder / "run.yaml", data={"name": "digits", "digest": digest})
    (said,) = merge([there], here).conflicts
    name = "the data set of partition/digits_rotate/seed0"
    assert f"{name} has other samples there (theirs) than in the merged results (mine)" in said


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "metrics.parquet").unlink(), "damaged"),
        (lambda folder: (folder / "summary.json").write_text("{"), "damaged"),
        (lambda folder: change(folder / "run.yaml", results_version=0), "results version 0"),
        (lambda folder: change(folder / "run.yaml", seed=7), "the folder was renamed or files were mixed"),
    ],
)
def test_a_run_that_cannot_be_trusted_is_a_conflict(machines, break_it, words):
    here, there, made = machines
    break_it(made["there", 2])
    (said,) = merge([there], here).conflicts
    assert words in said and str(made["there", 2]) in said
    assert not (here / made["there", 2].relative_to(there)).exists()


def test_runs_of_several_versions_are_flagged(machines):
    here, there, made = machines
    complete(made["there", 2], 2, commit="def")
    assert "runs of several versions of the code: 1 abc (2), 1 def (1)" in str(merge([there], here))


def test_a_folder_without_results_is_a_mistake(tmp_path, machines):
    here, _, _ = machines
    with pytest.raises(ConfigError, match="holds no results"):
        merge([tmp_path], here)
    with pytest.raises(ConfigError, match="is the folder that the others are merged into"):
        merge([here], here)

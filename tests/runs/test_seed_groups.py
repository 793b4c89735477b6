"""MLflow's parent runs: one for each task × variant, with the means over its seeds, and the data that a seed read."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import FAILURE, make_run, write_run

from floral.config.run import Run
from floral.core.intervals import t_interval
from floral.tracking.mlflow_store import default_uri
from floral.tracking.track import track

DIGEST = "0123456789abcdef" * 4


pytestmark = pytest.mark.usefixtures("empty_store")


def stored(results: Path, kind: str) -> dict[str, Any]:
    """Name → MLflow run, of the runs of a kind."""
    from mlflow import MlflowClient

    client = MlflowClient(default_uri(results))
    experiment = client.get_experiment_by_name("suite")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def curve(results: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    history = MlflowClient(default_uri(results)).get_metric_history(run_id, key)
    return [(point.step, point.value) for point in history]


def artifacts(results: Path, run_id: str) -> dict[str, str]:
    folder = results / "track" / "artifacts" / "suite" / run_id / "artifacts"
    return {path.name: path.read_text() for path in folder.iterdir()}


def seeds(variant: str, count: int) -> list[Run]:
    return [make_run("digits_rotate", variant, seed) for seed in range(count)]


def test_a_parent_has_the_mean_its_interval_and_the_mean_curve(tmp_path: Path) -> None:
    runs = seeds("fedavg", 3) + seeds("floral_1", 3)
    for run in runs:
        write_run(tmp_path, run)
    track("suite", runs, tmp_path)
    parents, children = stored(tmp_path, "mean"), stored(tmp_path, "seed")
    assert set(parents) == {"fedavg on digits_rotate", "floral_1 on digits_rotate"}
    for parent in parents.values():
        below = [run for run in children.values() if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]
        assert {run.info.run_name for run in below} == {
            f"digits_rotate/{parent.data.tags['variant']}/seed{seed}" for seed in range(3)
        }
    said = parents["fedavg on digits_rotate"].data
    expected = t_interval([0.60, 0.61, 0.62])
    assert said.metrics["test/accuracy"] == pytest.approx(expected.mean)
    assert said.metrics["low/test/accuracy"] == pytest.approx(expected.low)
    assert said.metrics["high/test/accuracy"] == pytest.approx(expected.high)
    assert (said.metrics["seeds/done"], said.metrics["seeds/expected"]) == (3, 3)
    assert (said.tags["variant"], said.tags["suite"], said.tags["family"]) == ("fedavg", "suite", "Global")
    assert said.params["variant.method"] == "fedavg" and not {"seed", "hash8", "task.lr"} & said.params.keys()
    assert (said.metrics["cost/seconds_total"], said.metrics["cost/bytes"]) == (pytest.approx(1.3), 4000)
    assert parents["floral_1 on digits_rotate"].data.metrics["route/ari"] == 1.0
    seed0 = children["digits_rotate/fedavg/seed0"].data.metrics
    assert (seed0["test/accuracy"], seed0["own_test/accuracy"]) == (0.6, 0.6)
    data = parents["fedavg on digits_rotate"].inputs.dataset_inputs
    assert len({item.dataset.name for item in data}) == 3  # the partitions of three seeds
    files = artifacts(tmp_path, parents["fedavg on digits_rotate"].info.run_id)
    assert files["seeds.csv"].splitlines()[2].startswith("1,done,0.61,")
    assert "\nseed:" not in files["configuration.yaml"]
    points = curve(tmp_path, parents["fedavg on digits_rotate"].info.run_id, "own_test/accuracy")
    assert points == [(0, pytest.approx(0.1)), (2, pytest.approx(0.3)), (4, pytest.approx(0.61))]


def test_one_seed_has_no_interval_and_a_later_one_gives_it(tmp_path: Path) -> None:
    runs = seeds("fedavg", 2)
    write_run(tmp_path, runs[0])
    track("suite", runs, tmp_path)
    (first,) = stored(tmp_path, "mean").values()
    assert first.data.metrics["test/accuracy"] == 0.60
    assert not {"low/test/accuracy", "high/test/accuracy"} & first.data.metrics.keys()
    assert first.data.tags["seeds"] == "1 of 2 seeds"
    write_run(tmp_path, runs[1])
    for _ in range(2):
        track("suite", runs, tmp_path)
        (parent,) = stored(tmp_path, "mean").values()
        assert parent.data.metrics["test/accuracy"] == pytest.approx(0.605)
        assert parent.data.metrics["low/test/accuracy"] < 0.60
        points = curve(tmp_path, parent.info.run_id, "own_test/accuracy")
        assert points == [(0, pytest.approx(0.1)), (2, pytest.approx(0.3)), (4, pytest.approx(0.605))]
        children = stored(tmp_path, "seed").values()
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}


@pytest.mark.parametrize(("fidelity", "mean"), [("official", 0.60), ("corrected", None)])
def test_diverged_and_failed_seeds_are_counted(tmp_path: Path, fidelity: str, mean: float | None) -> None:
    """Without the one that diverged a mean flatters: only the official fidelity drops it."""
    runs = [make_run("digits_rotate", "fedavg", seed, fidelity) for seed in range(4)]
    write_run(tmp_path, runs[0])
    write_run(tmp_path, runs[1], "diverged")
    (tmp_path / runs[2].folder).mkdir(parents=True)
    (tmp_path / runs[2].folder / "failure.json").write_text(json.dumps(FAILURE))
    track("suite", runs, tmp_path)
    (parent,) = stored(tmp_path, "mean").values()
    assert parent.data.tags["seeds"] == "1 of 4 seeds, 1 diverged, 1 failed"
    assert parent.data.metrics.get("test/accuracy") == mean
    assert len(stored(tmp_path, "seed")) == 2


def test_runs_of_a_part_of_the_suite_leave_the_means_over_all_seeds(tmp_path: Path) -> None:
    runs = seeds("fedavg", 3)
    for run in runs:
        write_run(tmp_path, run)
    track("suite", runs, tmp_path)
    before = stored(tmp_path, "mean")
    track("suite", runs[:1], tmp_path, all_runs=runs)
    assert {name: run.to_dictionary() for name, run in stored(tmp_path, "mean").items()} == {
        name: run.to_dictionary() for name, run in before.items()
    }


@pytest.mark.parametrize("lost", ["parents", "metrics"])
def test_what_a_store_of_before_lacks_is_added(tmp_path: Path, lost: str) -> None:
    """Its runs had no parent; or tracking was killed while it logged the means."""
    runs = seeds("fedavg", 3)
    for run in runs:
        write_run(tmp_path, run)
    track("suite", runs, tmp_path)
    (parent,) = stored(tmp_path, "mean").values()
    with sqlite3.connect(tmp_path / "track" / "mlflow.db") as database:
        if lost == "parents":
            database.execute("DELETE FROM tags WHERE key = 'mlflow.parentRunId'")
            database.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", [parent.info.run_id])
        else:
            database.execute("DELETE FROM metrics WHERE step = 2 AND run_uuid = ?", [parent.info.run_id])
            database.execute("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ?", [parent.info.run_id])
    database.close()
    track("suite", runs, tmp_path)
    (found,) = stored(tmp_path, "mean").values()
    assert found.data.metrics == parent.data.metrics
    assert len(curve(tmp_path, found.info.run_id, "own_test/accuracy")) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in stored(tmp_path, "seed").values()} == {found.info.run_id}


@pytest.mark.parametrize("says", ["run.yaml", "card.json"])
def test_a_run_says_its_partition_and_its_data_with_their_digests(tmp_path: Path, says: str) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    folder = write_run(tmp_path, run)
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    place = "partition/digits_rotate/seed0-11111111"
    settings["partition"] = {"folder": place, "digest": DIGEST[::-1]}
    if says == "run.yaml":
        settings["data"] = {"name": "digits", "digest": DIGEST}
    else:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "card.json").write_text(json.dumps({"data_digest": DIGEST}))
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    for _ in range(2):
        track("suite", [run], tmp_path)
    (child,) = stored(tmp_path, "seed").values()
    inputs = {one.dataset.name: one for one in child.inputs.dataset_inputs}
    assert len(child.inputs.dataset_inputs) == 2
    assert inputs["digits"].dataset.digest == DIGEST[:36]
    assert json.loads(inputs["digits"].dataset.profile) == {"digest": DIGEST}
    assert json.loads(inputs["digits"].dataset.source) == {"uri": "data/digits"}
    assert inputs["digits_rotate/seed0-11111111"].dataset.digest == DIGEST[::-1][:36]
    assert [tag.value for tag in inputs["digits"].tags] == ["training"]

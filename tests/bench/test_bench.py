"""The commands: what they print, what they leave, and what they say when data are missing. Never how long they take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from floral.bench import cases, data, report, scale, timing
from floral.bench.cases import CASES, Case, holds
from floral.bench.contenders import prepare, require
from floral.bench.stdout import kept_for_the_answer
from floral.config.reading import ConfigError

ROOT = Path(__file__).parents[2]


def floral(*arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Call the command in the project's root, its results and reports in `folder`."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FLORAL_")}
    return subprocess.run(
        [Path(sys.executable).parent / "floral", *arguments],
        cwd=ROOT, env=ours | {"FLORAL_RESULTS": str(folder)} | more, capture_output=True, text=True, timeout=170,
    )  # fmt: skip


def engine(task: str, variant: str, folder: Path) -> dict:
    arguments = ["bench", "engine", "--task", task, "--variant", variant, "--rounds", "2", "--threads", "1", "--json"]
    said = floral(*arguments, folder=folder)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_engine_prints_one_json_object_with_the_ratio_to_the_floor(tmp_path):
    found = engine("synthetic_mlp", "floral_1", tmp_path)
    assert found["seconds_per_round"] > 0 and found["samples_per_second"] > 0 and found["peak_memory_bytes"] > 1e7
    assert found["ratio"] > 0 and found["spread"] >= 0 and found["floor_seconds_per_round"] > 0
    assert found["floor"].startswith("FedAvg") and found["pairs"] == 2 and found["execution"]["backend"]


def test_without_a_floor_there_is_a_reason_and_no_ratio(tmp_path):
    found = engine("digits_rotate", "fedavg", tmp_path)
    assert found["ratio"] is None and found["spread"] is None and found["floor_seconds_per_round"] is None
    assert found["floor"].startswith("none: its clients have unequal numbers")


def test_data_are_read_and_divided_and_each_figure_has_its_limit(tmp_path):
    asked = ["bench", "data", "--data", "digits"]
    said = floral(*asked, "--json", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    read, memory, *divided = json.loads(said.stdout)
    assert read["case"] == "digits: from its files to arrays" and read["value"] > 0 and read["limit"] is None
    assert memory["value"] > 0 and [row["limit"] for row in divided] == [1.0] * 3
    assert data.line({"case": "x", "value": 3.1, "unit": "s", "limit": 3.0}) == "x: 3.1 s (limit ≤ 3 s: MISSED)"
    said = floral("bench", "data", "--data", "digts", folder=tmp_path)
    assert said.returncode == 2 and "did you mean 'digits'?" in said.stderr


def test_more_threads_than_cores_are_a_mistake(tmp_path):
    asked = ["bench", "engine", "--task", "digits_rotate", "--variant", "fedavg", "--threads", "4096"]
    said = floral(*asked, folder=tmp_path)
    assert said.returncode == 2 and "--threads 4096" in said.stderr


def test_missing_data_stop_the_report_before_it_begins(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    said = floral("bench", "report", "--json", folder=tmp_path, FLORAL_DATA=str(empty))
    assert said.returncode == 2 and said.stdout == ""
    assert f"{empty}/mnist/train-images-idx3-ubyte.gz: missing" in said.stderr
    assert "cifar100" in said.stderr and "FLORAL_DATA" in said.stderr and "Traceback" not in said.stderr
    assert not (tmp_path / "data").exists()


def test_raw_files_may_be_unpacked_or_packaged(tmp_path):
    require(["digits"], tmp_path, None)
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    (tmp_path / "mnist").mkdir()
    for name in names:
        (tmp_path / "mnist" / f"{name}-ubyte").touch()
    require(["mnist"], tmp_path / "results", tmp_path)
    (tmp_path / "mnist" / f"{names[2]}-ubyte").unlink()
    with pytest.raises(ConfigError, match="t10k-images") as told:
        require(["mnist"], tmp_path / "results", tmp_path)
    assert "train-images" not in str(told.value) and "floral fetch mnist" in str(told.value)


def test_only_the_answer_reaches_stdout(capfd):
    with kept_for_the_answer():
        print("progress")
        subprocess.run(["echo", "a child's word"], check=True)
    print("answer")
    said = capfd.readouterr()
    assert said.out == "answer\n" and "progress" in said.err and "a child's word" in said.err


# ------------------------------------------------------------------------------------------------ report


SMALL = (
    Case(name="floor", limit=1e9, task="synthetic_mlp", variant="fedavg", measure=cases.to_floor),
    Case(name="pair", limit=1e-9, task="digits_rotate", variant="floral_1", to="fedavg", measure=cases.to_variant),
    Case(name="C", limit=1e9, task="digits_rotate", variant="ensemble", to="fedavg", measure=cases.to_every_cluster),
    Case(
        name="rate", limit=1e-9, direction="min", task="synthetic_linear", variant="floral_1",
        measure=cases.rounds_per_second,
    ),
)  # fmt: skip


def measured_scale(**how):
    """Points as `scale` gives them, without MNIST."""
    points = [
        {"clients": clients, "variant": variant, "seconds_per_round": 0.01, "rounds": 3, "resident_bytes": 3 * 10**8,
         "mapped_bytes": 10**8, "private_floats_per_client": 0}
        for variant in scale.VARIANTS for clients in (10, 100)
    ]  # fmt: skip
    ratios = {variant: {"ratio": 1.0, "spread": 0.1, "seconds": [0.1, 0.1]} for variant in scale.VARIANTS}
    ratios["floral_1"] = {"ratio": 1.05, "spread": 0.2, "seconds": [0.105, 0.1]}
    assert set(how) == {"results", "data_dir", "backend", "threads", "rounds", "say"}
    return {"cohort": 30, "clients": [10, 100], "compared": [10, 100], "points": points, "ratios": ratios}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The rows and the folder of a report on what needs no external data."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "prepare", lambda runs, results, data_dir, also: prepare(runs, results, data_dir))
        rows = report.report(
            results=folder / "results", reports=folder / "reports", data_dir=None, backend="loop", threads=1, rounds=2,
            cases=SMALL, scale=measured_scale,
        )  # fmt: skip
    return rows, folder / "reports" / "bench"


def test_rows_have_what_is_compared(written):
    rows, _ = written
    assert [row["case"] for row in rows] == ["floor", "pair", "C", "rate", cases.SCALE_CASE]
    for row in rows:
        assert {"case", "ratio", "limit", "direction", "spread", "seconds"} <= set(row)
        assert row["direction"] in ("max", "min") and row["ratio"] > 0 and row["spread"] >= 0
    assert [holds(row) for row in rows] == [True, False, True, True, True]
    assert rows[-1]["ratio"] == 1.05 and set(rows[-1]["by_variant"]) == set(scale.VARIANTS)
    assert json.loads(json.dumps(rows)) == rows


def test_table_and_figures_are_written(written):
    rows, folder = written
    table = (folder / "bench.md").read_text()
    assert all(row["case"] in table for row in rows) and table.count("**missed**") == 1
    assert json.loads((folder / "bench.json").read_text())["rows"] == rows
    for name in ("bench", "scale"):
        assert (folder / f"{name}.svg").read_text().startswith("<svg") and b"%PDF" in (
            folder / f"{name}.pdf"
        ).read_bytes()
    assert "pair" in (folder / "bench.svg").read_text() and "local_adaptor" in (folder / "scale.svg").read_text()


def test_the_fixed_set_is_that_of_the_table():
    limits = {(case.task, case.variant, case.to): (case.limit, case.direction) for case in CASES}
    assert limits == {
        ("mnist_rotate", "fedavg", "floor"): (1.5, "max"),
        ("cifar10_rotate_reduced", "fedavg", "floor"): (1.15, "max"),
        ("cifar100_reduced", "floral_1", "fedavg"): (1.6, "max"),
        ("cifar100_reduced", "floral_10", "fedavg"): (2.2, "max"),
        ("mnist_rotate_reduced", "floral_1", "fedavg"): (1.6, "max"),
        ("mnist_rotate_reduced", "ensemble", "fedavg"): (1.1, "max"),
        ("synthetic_linear", "floral_1", "floor"): (300, "min"),
    }
    assert cases.SCALE_LIMIT == 1.1
    (images,) = {run.task.augmentation for case in CASES if case.task == "cifar10_rotate_reduced" for run in case.runs}
    assert images == "none"


# --------------------------------------------------------------------------------------- timing and scale


def test_pairs_are_compared_pair_by_pair():
    pairs = timing.Pairs(np.array([2.0, 20.0, 3.0, 4.0]), np.array([1.0, 10.0, 1.0, 2.0]))
    assert pairs.ratio == 2.0 and pairs.spread == pytest.approx(0.25)


def test_contenders_take_turns_after_they_are_warm(monkeypatch):
    monkeypatch.setattr(timing, "WARM_SECONDS", 0.0)
    calls: list[tuple[str, int]] = []
    pairs = timing.alternate(lambda n: calls.append(("a", n)), lambda n: calls.append(("b", n)), rounds=3)
    warm = timing.WARM_ROUNDS
    assert calls[: 2 * warm] == [("a", 1)] * warm + [("b", 1)] * warm
    assert [name for name, _ in calls[2 * warm :]] == ["a", "b", "b", "a", "a", "b"] and len(pairs.first) == 3


def test_clients_of_the_scale_run_share_rows_but_keep_their_own_state(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    arrays = {"train_x": random.integers(0, 255, (600, 28, 28)), "test_x": random.integers(0, 255, (20, 28, 28))}
    arrays = {side: array.astype(np.uint8) for side, array in arrays.items()}
    arrays |= {"train_y": random.integers(0, 10, 600), "test_y": random.integers(0, 10, 20)}
    monkeypatch.setattr(scale, "read_data", lambda name, results: ({}, arrays))
    one = scale.contender(1000, "local_adaptor", tmp_path, "loop", 1)
    one(2)
    assert (one.round, one.samples) == (2, 2 * 30 * 10)
    assert scale.private_floats(one) > 0 and len(one.state.values["adaptor"]["hidden.B"]) == 1000
    train = one.simulation.data.train
    assert train.index[3].tolist() == list(range(30, 40)) and train.index[63].tolist() == list(range(30, 40))
    assert scale.resident("RssAnon") > 1e7

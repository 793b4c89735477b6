"""Tests of the commands `floral bench`: their output, files and error messages. No test depends on the speed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from floral.bench import cases, data, engine, machine, processes, report, scale, timing
from floral.bench.cases import CASES, Case, holds
from floral.bench.prepare import prepare, require
from floral.bench.stdout import reserved_stdout
from floral.config.reading import ConfigError
from floral.core.clock import Reading, read_clock

ROOT = Path(__file__).parents[2]


def floral(*arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `floral` in the project's root, with results and reports in `folder`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLORAL_")}
    return subprocess.run(
        [Path(sys.executable).parent / "floral", *arguments],
        cwd=ROOT, env=environment | {"FLORAL_RESULTS": str(folder)} | more, capture_output=True, text=True, timeout=170,
    )  # fmt: skip


def test_engine_prints_one_json_object_with_the_ratio_to_the_baseline(tmp_path):
    arguments = ["--task", "synthetic_mlp", "--variant", "floral_1", "--rounds", "2", "--threads", "1", "--json"]
    output = floral("bench", "engine", *arguments, folder=tmp_path)
    assert output.returncode == 0, output.stderr
    result = json.loads(output.stdout)
    assert result["seconds_per_round"] > 0 and result["samples_per_second"] > 0 and result["peak_memory_bytes"] > 1e7
    assert result["ratio"] > 0 and result["spread"] >= 0 and result["floor_seconds_per_round"] > 0
    assert result["floor"].startswith("FedAvg") and result["pairs"] == 2 and result["execution"]["backend"]


def test_a_task_without_a_baseline_gives_a_reason_and_no_ratio(tmp_path):
    how = {"results": tmp_path, "data_dir": None, "device": "cpu", "backend": "auto", "threads": 1, "rounds": 2}
    result = engine.engine("digits_rotate", "fedavg", **how)
    assert result["ratio"] is None and result["spread"] is None and result["floor_seconds_per_round"] is None
    assert result["floor"].startswith("none: clients have unequal numbers")


def test_data_reports_reading_and_partitioning_with_their_limits(tmp_path):
    arguments = ["bench", "data", "--data", "digits"]
    output = floral(*arguments, "--json", folder=tmp_path)
    assert output.returncode == 0, output.stderr
    read, memory, *partitions = json.loads(output.stdout)
    assert read["case"] == "digits: read raw files into arrays" and read["value"] > 0 and read["limit"] is None
    assert memory["value"] > 0 and [row["limit"] for row in partitions] == [1.0] * 3
    assert data.line({"case": "x", "value": 3.1, "unit": "s", "limit": 3.0}) == "x: 3.1 s (limit ≤ 3 s: MISSED)"
    with pytest.raises(ConfigError, match=r"did you mean 'digits'\?"):
        data.data(["digts"], results=tmp_path, data_dir=None)


def test_more_threads_than_cores_are_refused(tmp_path):
    arguments = ["bench", "engine", "--task", "digits_rotate", "--variant", "fedavg", "--threads", "4096"]
    output = floral(*arguments, folder=tmp_path)
    assert output.returncode == 2 and "--threads 4096" in output.stderr


def test_missing_data_stop_the_report_before_any_measurement(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    output = floral("bench", "report", "--json", folder=tmp_path, FLORAL_DATA=str(empty))
    assert output.returncode == 2 and output.stdout == ""
    assert f"{empty}/mnist/train-images-idx3-ubyte.gz: missing" in output.stderr
    assert "cifar100" in output.stderr and "FLORAL_DATA" in output.stderr and "Traceback" not in output.stderr
    assert not (tmp_path / "data").exists()


def test_raw_files_may_be_unpacked_or_inside_a_package(tmp_path):
    require(["digits"], tmp_path, None)
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    (tmp_path / "mnist").mkdir()
    for name in names:
        (tmp_path / "mnist" / f"{name}-ubyte").touch()
    require(["mnist"], tmp_path / "results", tmp_path)
    (tmp_path / "mnist" / f"{names[2]}-ubyte").unlink()
    with pytest.raises(ConfigError, match="t10k-images") as error:
        require(["mnist"], tmp_path / "results", tmp_path)
    assert "train-images" not in str(error.value) and "floral fetch mnist" in str(error.value)
    (tmp_path / "more").mkdir()
    with pytest.raises(ConfigError, match=rf"{tmp_path}/mnist/t10k-\S+ and {tmp_path}/more/mnist/t10k-\S+: missing"):
        require(["mnist"], tmp_path / "results", Path(f"{tmp_path}{os.pathsep}{tmp_path / 'more'}"))


def test_progress_goes_to_stderr_while_stdout_is_reserved(capfd):
    with reserved_stdout():
        print("progress")
        subprocess.run(["echo", "output of a child"], check=True)
    print("answer")
    output = capfd.readouterr()
    assert output.out == "answer\n" and "progress" in output.err and "output of a child" in output.err


# ------------------------------------------------------------------------------------------------ report


SMALL = (
    Case(name="baseline", limit=1e9, task="synthetic_mlp", variant="fedavg", measure=cases.to_baseline),
    Case(
        name="pair", limit=1e-9, task="digits_rotate", variant="floral_1", reference="fedavg", measure=cases.to_variant,
    ),
    Case(
        name="C", limit=1e9, task="digits_rotate", variant="ensemble", reference="fedavg",
        measure=cases.to_every_cluster,
    ),
    Case(
        name="rate", limit=1e-9, direction="min", task="synthetic_linear", variant="floral_1",
        measure=cases.rounds_per_second,
    ),
    Case(
        name="module", limit=1e9, task="digits_rotate", variant="fedavg", reference=cases.UNCHANGED,
        measure=cases.to_variant, backend="vmap",
        change={"model": {"kind": "module", "build": "floral.bench.modules:mlp", "arguments": {"hidden": 64}}},
    ),
    Case(name="memory", limit=1e-9, task="digits_rotate", variant="fedavg", measure=cases.peak_gigabytes),
    Case(
        name="memory of two", limit=1e9, task="synthetic_linear", variant="floral_1", reference=cases.UNCHANGED,
        measure=cases.peak_to_reference, change={"lr": 0.02}, params={"rank": 1},
    ),
    Case(
        name="threads", limit=1e9, task="synthetic_linear", variant="floral_1", measure=cases.to_one_thread,
    ),
    Case(
        name="without package", limit=1.1, task="sentiment_genres", variant="fedit", reference=cases.PEFT,
        measure=cases.to_peft, packages=("json", "no_such_package"),
    ),
)  # fmt: skip


BUSY = "other programs used 1.4 cores"


def fake_scale(**options):
    """Stands in for `scale`, which needs MNIST. Returns the same structure."""
    points = [
        {"clients": clients, "variant": variant, "seconds_per_round": 0.01, "rounds": 3, "resident_bytes": 3 * 10**8,
         "mapped_bytes": 10**8, "private_floats_per_client": 0}
        for variant in scale.VARIANTS for clients in (10, 100)
    ]  # fmt: skip
    ratios = {
        variant: {"ratio": 1.0, "spread": 0.1, "seconds": [0.1, 0.1], "disturbance": None} for variant in scale.VARIANTS
    }
    ratios["floral_1"] = {"ratio": 1.05, "spread": 0.2, "seconds": [0.105, 0.1], "disturbance": BUSY}
    assert set(options) == {"results", "data_dir", "backend", "threads", "rounds", "log"}
    return {"cohort": 30, "clients": [10, 100], "compared": [10, 100], "points": points, "ratios": ratios}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Rows and folder of a report on cases that need no external data."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        for module in (report, cases):
            patch.setattr(module, "in_new_process", lambda measure, *arguments: measure(*arguments))  # saves imports
        patch.setattr(report, "prepare", lambda runs, results, data_dir, also: prepare(runs, results, data_dir))
        rows = report.report(
            results=folder / "results", reports=folder / "reports", data_dir=None, backend="loop", threads=1, rounds=2,
            cases=SMALL, scale=fake_scale,
        )  # fmt: skip
    return rows, folder / "reports" / "bench"


def test_rows_have_ratio_limit_and_seconds(written):
    rows, _ = written
    assert [row["case"] for row in rows] == [
        "baseline", "pair", "C", "rate", "module", "memory", "memory of two", "threads", "without package",
        cases.SCALE_CASE,
    ]  # fmt: skip
    for row in rows:
        assert {"case", "ratio", "limit", "direction", "spread", "seconds", "disturbance"} <= set(row)
    measured = [row for row in rows if row["ratio"] is not None]
    assert all(row["direction"] in ("max", "min") and row["ratio"] > 0 and row["spread"] >= 0 for row in measured)
    assert [holds(row) for row in measured] == [True, False, True, True, True, False, True, True, True]
    assert 0.9 < rows[6]["ratio"] <= 1, "the memory of one process never falls, and the reference is measured last"
    assert rows[4]["executions"][0].startswith("vmap") and 0.1 < rows[5]["ratio"] < 100
    assert rows[-1]["ratio"] == 1.05 and set(rows[-1]["by_variant"]) == set(scale.VARIANTS)
    assert json.loads(json.dumps(rows)) == rows


def test_table_and_figures_are_written(written):
    rows, folder = written
    table = (folder / "bench.md").read_text()
    assert all(row["case"] in table for row in rows)
    missed = [row for row in rows if row["ratio"] is not None and not row["disturbance"] and not holds(row)]
    assert table.count("**missed**") == len(missed)
    assert json.loads((folder / "bench.json").read_text())["rows"] == rows
    for name in ("bench", "scale"):
        assert (folder / f"{name}.svg").read_text().startswith("<svg") and b"%PDF" in (
            folder / f"{name}.pdf"
        ).read_bytes()
    assert "pair" in (folder / "bench.svg").read_text() and "local_adaptor" in (folder / "scale.svg").read_text()


def test_a_case_without_its_packages_or_data_is_named_and_not_measured(written, tmp_path):
    rows, folder = written
    row, reason = rows[-2], "the package no_such_package is missing; install it with: pip install 'floral-bench[hf]'"
    assert row["ratio"] is None and row["missing"] == reason
    assert report.line(row) == f"without package: not measured: {reason}"
    table = (folder / "bench.md").read_text()
    assert "| without package | not measured | ≤ 1.1 |" in table and f"- without package: {reason}" in table
    missing = replace(SMALL[-1], packages=("json",)).missing(tmp_path, tmp_path)
    for file in ("all-MiniLM-L6-v2/model.safetensors", "sentiment/tweets_GroundTruth.txt"):
        assert f"{tmp_path}/{file}" in missing
    assert "FLORAL_DATA" in missing and replace(SMALL[0], packages=("json",)).missing(tmp_path, tmp_path) is None


def test_the_fixed_cases_have_the_documented_limits():
    compared = {cases.to_one_thread: "one thread", cases.peak_gigabytes: "memory"}
    limits = {
        (case.task, case.variant, compared.get(case.measure, f"{case.reference} {case.backend or ''}".strip())): (
            case.limit,
            case.direction,
        )
        for case in CASES
    }
    assert limits == {
        ("mnist_rotate", "fedavg", "baseline"): (1.5, "max"),
        ("cifar10_rotate_reduced", "fedavg", "baseline"): (1.15, "max"),
        ("cifar100_reduced", "floral_1", "fedavg"): (1.6, "max"),
        ("cifar100_reduced", "floral_10", "fedavg"): (2.2, "max"),
        ("mnist_rotate_reduced", "floral_1", "fedavg"): (1.6, "max"),
        ("mnist_rotate_reduced", "ensemble", "fedavg"): (1.1, "max"),
        ("synthetic_linear", "floral_1", "baseline"): (300, "min"),
        ("mnist_rotate", "fedavg", "unchanged loop"): (3.0, "max"),
        ("mnist_rotate", "fedavg", "unchanged vmap"): (1.5, "max"),
        ("digits_rotate", "floral_1", "memory"): (1.5, "max"),
        ("sentiment_genres", "fedit_trained_base", "peft loop"): (1.1, "max"),
        ("sentiment_genres", "fedit_trained_base", "peft auto"): (1.0, "max"),
        ("sentiment_genres", "floral_1", "fedit_trained_base loop"): (1.25, "max"),
        ("sentiment_genres", "floral_1", "memory"): (1.5, "max"),
        ("sentiment_genres", "local_adaptor", "unchanged loop"): (1.2, "max"),
    } | {(task, "floral_1", "one thread"): (1.05, "max") for task in ("synthetic_linear", "mnist_rotate_reduced")}
    assert cases.SCALE_LIMIT == 1.1
    (images,) = {run.task.augmentation for case in CASES if case.task == "cifar10_rotate_reduced" for run in case.runs}
    assert images == "none"


# ------------------------------------------------------------------------------------------ a busy machine


def test_a_row_that_other_work_disturbed_is_marked(written):
    rows, folder = written
    assert rows[-1]["disturbance"] == BUSY
    assert report.line(rows[-1]).endswith(f"holds); not reliable: {BUSY}")
    table = (folder / "bench.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {cases.SCALE_CASE}"))
    assert "**not reliable**" in row and f"- {cases.SCALE_CASE}: {BUSY}" in table
    assert "not reliable" not in report.line({**rows[-1], "disturbance": None})


@pytest.mark.parametrize(
    ("took", "words"),
    [
        ({"cpu": 9.8, "busy": 10.0}, None),
        ({"cpu": 10.0, "busy": 24.0}, "other programs used 1.4 cores"),
        ({"cpu": 8.0, "busy": 8.0, "waited": 2.0}, "threads waited for a core in 20% of the time"),
        ({"cpu": 9.0, "busy": 9.0, "stolen": 1.0}, "the host of this virtual machine took 10% of a core"),
    ],
)
def test_the_disturbance_names_load_waiting_and_stolen_time(took, words):
    assert machine.disturbance(Reading(wall=10.0, **took)) == words


def test_the_clock_sees_other_programs_and_lost_time():
    """Two more processes than cores compute: a thread gets a core in a part of the time only."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(len(os.sched_getaffinity(0)) + 1)
    ]
    try:
        before = read_clock()
        while (took := read_clock() - before).wall < 0.5:
            pass
        assert machine.warning() is not None
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert took.cpu + took.waited == pytest.approx(took.wall, abs=0.1)
    assert took.lost_share > 0.1 and took.other_cores > 0.25


# --------------------------------------------------------------------------------------- timing and scale


def test_ratio_is_the_median_over_pairs():
    pairs = timing.Pairs(np.array([2.0, 20.0, 3.0, 4.0]), np.array([1.0, 10.0, 1.0, 2.0]))
    assert pairs.ratio == 2.0 and pairs.spread == pytest.approx(0.25)


def test_blocks_alternate_after_the_warm_up(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_S", 0.0)
    calls: list[tuple[str, int]] = []
    pairs = timing.time_pairs(lambda n: calls.append(("a", n)), lambda n: calls.append(("b", n)), rounds=3)
    warm = timing.WARM_UP_ROUNDS
    assert calls[: 2 * warm] == [("a", 1)] * warm + [("b", 1)] * warm
    assert [name for name, _ in calls[2 * warm :]] == ["a", "b", "b", "a", "a", "b"] and len(pairs.first) == 3


def test_clients_of_the_scale_run_share_samples_but_not_private_state(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    arrays = {"train_x": random.integers(0, 255, (600, 28, 28)), "test_x": random.integers(0, 255, (20, 28, 28))}
    arrays = {side: array.astype(np.uint8) for side, array in arrays.items()}
    arrays |= {"train_y": random.integers(0, 10, 600), "test_y": random.integers(0, 10, 20)}
    monkeypatch.setattr(scale, "read_data", lambda name, results: ({}, arrays))
    measured = scale.engine_rounds(1000, "local_adaptor", tmp_path, "loop", 1)
    measured(2)
    assert (measured.round, measured.samples) == (2, 2 * 30 * 10)
    assert scale.private_floats(measured) > 0 and len(measured.state.values["adaptor"]["hidden.B"]) == 1000
    train = measured.simulation.data.train
    assert train.index[3].tolist() == list(range(30, 40)) and train.index[63].tolist() == list(range(30, 40))
    assert processes.memory_bytes("RssAnon") > 1e7

"""`floral.run` trains what a suite trains, from names, dictionaries, objects or arrays; `floral.load` reads it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from run_folders import write_run, write_suite

import floral
from floral.api.arguments import variant_of
from floral.config import catalogue
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.models.module import function_of
from floral.report.collect import collect

SMALL = {"extends": "digits_rotate", "clients": 4, "clusters": 2, "rounds": 2}
ARRAYS = {
    "data": {
        "x": np.random.default_rng(0).normal(size=(60, 3)),
        "y": np.array(["a", "b", "c"] * 20, dtype=object),
        "client": np.arange(60) % 5,
    },
    "participation": 1.0, "rounds": 2, "batch": 4, "lr": 0.1, "model": {"kind": "linear"},
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "results"


@pytest.fixture(scope="module")
def trained(results: Path) -> floral.Results:
    return floral.run(SMALL, "floral_1", results=results, threads=1, backend="loop", progress=False)


def test_importing_floral_imports_nothing_heavy() -> None:
    code = "import sys, floral; print([m for m in ('torch', 'polars', 'numpy', 'pydantic') if m in sys.modules])"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert listed.stdout == "[]\n"
    assert {"run", "load", "Results", "ConfigError"} <= set(dir(floral))


def test_a_run_has_the_name_that_a_suite_gives_it(trained: floral.Results, results: Path) -> None:
    same = Run(
        task=catalogue.task("digits_rotate", {key: value for key, value in SMALL.items() if key != "extends"}),
        variant=catalogue.variant("floral_1"), seed=0, fidelity=catalogue.fidelity("corrected"),
    )  # fmt: skip
    assert trained.summary["hash8"].to_list() == [same.hash8]
    assert (results / same.folder / "summary.json").exists()


def test_the_frames_have_what_the_files_have(trained: floral.Results) -> None:
    assert trained.summary.select("status", "round", "seed").rows() == [("done", 2, 0)]
    curves, clients, routes = trained.curves(), trained.clients(), trained.routes()
    for frame in (trained.summary, curves, clients, routes):
        assert frame.columns[:4] == ["task", "variant", "seed", "hash8"]
    last = curves.filter((pl.col("round") == 2) & (pl.col("split") == "route") & (pl.col("metric") == "ari"))
    assert last["value"].to_list() == trained.summary["ari"].to_list()
    assert clients["client"].to_list() == [0, 1, 2, 3]
    assert routes["round"].unique().sort().to_list() == [0, 1, 2]
    assert list(clients.to_pandas().columns) == clients.columns


def test_a_model_predicts_what_was_scored(trained: floral.Results, results: Path) -> None:
    model = trained.model()
    data, y = model._simulation.data, model._simulation.data.test.y
    for client, hits in trained.clients().select("client", "own_correct").iter_rows():
        rows = data.test.index[client, : data.test.count[client]]
        outputs = model.predict(data.test.x[rows].numpy(), client)
        assert int((outputs.argmax(1) == y[rows]).sum()) == hits
    assert outputs.shape == (len(rows), 10) and model.clients == 4
    with pytest.raises(floral.ConfigError, match="predict: client: 4 is no client; give a number from 0 to 3"):
        model.predict(data.test.x[:1], 4)
    with pytest.raises(floral.ConfigError, match="predict: client: 'a' is no client; give a number"):
        model.predict(data.test.x[:1], "a")
    with pytest.raises(floral.ConfigError, match=r"predict: x: has the shape \[8, 8\], but .* \[N, 8, 8\]"):
        model.predict(data.test.x[0], 0)


def test_a_function_in_a_file_is_the_model(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "net_of_this_test.py"
    path.write_text(
        "from torch import nn\n"
        "def make(shape, outputs, hidden=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, outputs))\n"
    )
    make = function_of(f"{path}:make")
    how = {"results": results, "threads": 1, "backend": "loop", "progress": False}
    by_function = floral.run({**SMALL, "model": make}, "fedavg", **how)
    for model in ({"kind": "module", "build": make}, {"kind": "module", "build": f"{path}:make"}):
        assert floral.run({**SMALL, "model": model}, "fedavg", **how).summary.equals(by_function.summary)
    wider = floral.run(
        {**SMALL, "model": {"kind": "module", "build": make, "arguments": {"hidden": 6}}}, "fedavg", **how
    )
    assert wider.model().tensors["base/3.weight"].shape == (10, 6)
    path.write_text(path.read_text().replace("ReLU", "Sigmoid"))
    loaded = floral.load(results)
    for stale in (wider, loaded):  # the trained values would be used in another model
        with pytest.raises(
            floral.ConfigError, match=r"net_of_this_test\.py \(or what it imports\) has changed, .* train it"
        ):
            stale.model(wider.summary["hash8"].item())


def test_a_finished_run_is_not_trained_again_unless_asked(
    trained: floral.Results, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trained.summary["finished_at"].item()
    how = {"results": results, "threads": 1, "backend": "loop"}
    assert floral.run(SMALL, "floral_1", **how).summary["finished_at"].item() == before
    printed = capsys.readouterr().out
    assert re.fullmatch(r"digits_rotate floral_1 seed 0: done, test accuracy 0\.\d+, [\d.]+ s\n", printed)
    costs = results / next(iter(trained._runs.values()))[1].folder / "costs.json"
    costs.write_text(re.sub(r'("floral/methods/floral.py": )"\w+"', r'\1"0"', costs.read_text()))
    with pytest.warns(UserWarning, match=r"made by other code \(floral/methods/floral\.py has changed\).*again=True"):
        floral.run(SMALL, "floral_1", **how, progress=False)
    once_more = floral.run(SMALL, "floral_1", **how, again=True, progress=False)
    assert '"0"' not in costs.read_text()
    assert once_more.curves().drop("bytes").equals(trained.curves().drop("bytes"))


def test_the_line_in_a_notebook_shows_each_round(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy on own test samples has another name than the accuracy of the report, on the global test set."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run = floral.run(SMALL, "fedavg", results=results, threads=1, backend="loop")
    lines = capsys.readouterr().out.split("\r")
    assert lines[2].startswith("digits_rotate fedavg seed 0: round 1 of 2: ") and "left" in lines[2]
    assert ", own test accuracy " in lines[2] and ", test accuracy" not in lines[2]
    assert lines[-1].endswith("\n") and "done, test accuracy" in lines[-1]
    (folder,) = (results / run.folder for _, run in run._runs.values())
    assert "done, test accuracy 0." in (log := (folder / "log.txt").read_text()) and "(on the global test set)" in log


def test_arrays_train_by_natural_client(results: Path) -> None:
    by_hand = floral.run(ARRAYS, "fedavg", results=results, threads=1, progress=False)
    assert by_hand.summary.select("task", "status", "classes").rows() == [("unnamed", "done", 3)]
    assert by_hand.clients()["name"].to_list() == ["0", "1", "2", "3", "4"]
    data = {name: torch.from_numpy(values) if name == "client" else values for name, values in ARRAYS["data"].items()}
    task = {**ARRAYS, "data": None}
    same = floral.run(task, "fedavg", data=data, results=results, threads=1, progress=False)
    assert same.summary["hash8"].item() == by_hand.summary["hash8"].item()
    assert len(list((results / "arrays").iterdir())) == 1
    assert by_hand.model().predict(np.zeros((2, 3), np.float32), 0).shape == (2, 3)


def test_objects_are_what_their_names_are(results: Path) -> None:
    objects = catalogue.task("digits_rotate", {"rounds": 1, "clients": 4, "clusters": 2}), catalogue.variant("floral_1")
    names = {"extends": "digits_rotate", "rounds": 1, "clients": 4, "clusters": 2}, "floral_1"
    how = {"results": results, "threads": 1, "backend": "loop", "progress": False}
    first, same, changed = (
        floral.run(*described, np.int64(1), **how)
        for described in (objects, names, (names[0], {"name": "floral_1", "rank": 0.2}))
    )
    assert first.summary["hash8"].item() == same.summary["hash8"].item()
    both = first + changed
    assert len(both) == 2 and both.curves()["hash8"].n_unique() == 2
    assert both.summary["method_changes"].to_list() == ["{}", '{"rank": 0.2}']
    with pytest.raises(floral.ConfigError, match=r"model: run: None is no run here; give the hash8 of a run, such as "):
        both.model()


METHOD = """
from dataclasses import replace
from parts_of_test import factor
from floral.core.spec import Method, Problem
from floral.methods import local

def build(problem: Problem, share: float = 1.0, *, words: str = "none") -> Method:
    \"\"\"Local training.\"\"\"
    return local.build(replace(problem, lr=problem.lr * share * factor))
"""


def test_a_function_in_a_file_is_the_method(results: Path, tmp_path: Path) -> None:
    """Its arguments are the hyper-parameters. The hash follows its code, and another process can read the run."""
    path, helper = tmp_path / "mine_of_test.py", tmp_path / "parts_of_test.py"
    path.write_text(METHOD)
    helper.write_text("factor = 1\n")
    task = {"data": Synthetic(kind="linear", samples_per_client=8), "participation": 1.0, "rounds": 2, "batch": 4,
            "lr": 0.1, "loss": "mse", "clients": 4, "clusters": 2, "model": {"kind": "linear"}}  # fmt: skip
    how = {"results": results, "threads": 1, "backend": "loop", "progress": False}
    half = {"build": f"{path}:build", "name": "half", "share": 0.5}
    run, same = floral.run(task, half, **how), floral.run({**task, "lr": 0.05}, "local", **how)
    assert run.summary.select("variant", "status").rows() == [("half", "done")]
    assert run.curves()["value"].to_list() == same.curves()["value"].to_list()
    loaded = floral.load(results, variants="half")
    assert loaded.model().clients == 4
    assert variant_of(function_of(f"{path}:build")).name == "mine_of_test"
    helper.write_text("factor = 0.25\n")
    with pytest.raises(floral.ConfigError, match="so its values would be used in another model"):
        loaded.model()
    for variant, message in (
        ({"build": f"{path}:build", "shar": 1}, "unknown parameter 'shar'; did you mean 'share'"),
        ({"build": f"{path}:build", "name": "fedavg"}, "'fedavg' is the name of another variant"),
        ({"build": f"{path}:bild"}, "has no function bild"),
    ):
        with pytest.raises(floral.ConfigError, match=message):
            variant_of(variant)


SYNTHETIC = Synthetic(kind="linear", samples_per_client=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "digits_rotat"}, "floral.run: task: unknown task 'digits_rotat'; did you mean 'digits_rotate'?"),
        ({"task": {"extends": "mnist"}}, "floral.run: task: extends: unknown task 'mnist'; did you mean "),
        ({"task": {**SMALL, "round": 3}}, "floral.run: task: unknown key 'round'; did you mean 'rounds'?"),
        ({"task": {"rounds": 3}}, "floral.run: task: `data` is missing: "),
        ({"task": {**SMALL, "name": "a/b"}}, "floral.run: task: name: the name 'a/b' of this task cannot be part"),
        ({"task": {**SMALL, "model": {"kind": "mpl"}}}, "floral.run: task: model.kind: unknown model 'mpl'; did you"),
        ({"task": {**SMALL, "model": torch.nn.Linear(1, 1)}}, "floral.run: task: model: Linear(in_features=1, "),
        ({"task": {**SMALL, "model": {"kind": "module", "build": lambda: None}}}, "floral.run: task: model: <func"),
        ({"task": 3}, "floral.run: task: 3 is no task; give the name of a task, or a dictionary with its YAML keys"),
        ({"variant": "floral1"}, "floral.run: variant: unknown variant 'floral1'; did you mean 'floral_1'?"),
        ({"variant": {"name": "floral_1", "rnk": 2}}, "floral.run: variant: unknown parameter 'rnk'; did you mean"),
        ({"variant": {"rank": 2}}, "floral.run: variant: {'rank': 2} names no variant; give a name such as"),
        ({"variant": torch.relu}, "floral.run: variant: <built-in method relu of type object at 0x"),
        ({"seed": -1}, "floral.run: seed: -1 is not a whole number of at least 0; give one, such as 0"),
        ({"seed": 0.5}, "floral.run: seed: 0.5 is not a whole number of at least 0"),
        ({"fidelity": "right"}, "floral.run: fidelity: 'right' is not allowed; choose corrected or official"),
        ({"backend": "fast"}, "floral.run: backend: 'fast' is not allowed; choose one of auto, loop, vmap, batched"),
        ({"results": 3}, "floral.run: results: 3 is no folder; give its path, such as 'results'"),
        ({"results": __file__}, f"floral.run: results: {__file__} is a file and no folder; move the file, or"),
        ({"threads": 0}, "floral.run: threads: 0 is below 1; give at least 1"),
        ({"data": [1]}, "floral.run: data: [1] is no data; give a name, a dictionary with the keys of `data`, or"),
        ({"data": {"train": 1}}, "floral.run: data: unknown key 'train'; did you mean 'train_"),
        ({"data": {"x": [[1.0]]}}, "floral.run: data: y is missing; give x, y"),
        ({"data": {"x": [[1.0]], "test_y": [1]}}, "floral.run: data: give either x and y, or train_x, train_y, "),
        ({"data": {"x": [[1.0]], "y": [1, 2]}}, "floral.run: data: x has 1, y has 2 entries; give each array one"),
        ({"data": {"x": 1.0, "y": [1]}}, "floral.run: data: x: 1.0 is no array with one entry per sample; give a"),
        ({"data": {"x": torch.ones(1, 1, requires_grad=True), "y": [1]}}, "floral.run: data: x: this is no array: "),
        ({"data": "digit"}, "floral.run: task: data: unknown data set 'digit'; did you mean 'digits'?"),
        ({"data": SYNTHETIC}, "floral.run: task: `loss: cross_entropy` does not fit synthetic data"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_with_a_remedy(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(floral.ConfigError) as error:
        floral.run(**{"task": SMALL, "variant": "fedavg", "results": tmp_path, **arguments})
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", [SMALL, ARRAYS, {**ARRAYS, "name": "mine"}], ids=["extends", "unnamed", "named"])
def test_a_model_that_cannot_be_used_is_named_as_the_task_of_floral_run(task: dict, results: Path) -> None:
    """A task in a dictionary has no file that a message could name."""
    plain = Path(__file__).parents[1] / "modules" / "plain.py"
    model = {"kind": "module", "build": f"{plain}:mlp", "head": "classifier"}
    with pytest.raises(
        floral.ConfigError, match=r"^floral\.run: task: model: module .*`head: classifier` is no linear"
    ):
        floral.run({**task, "model": model}, "fedavg", results=results, progress=False)


def test_a_failed_run_raises_with_its_cause_and_leaves_the_reason(results: Path, monkeypatch) -> None:
    from floral.engine.simulate import Simulation

    def fail(*_):
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(Simulation, "train", fail)
    with pytest.raises(Exception, match="digits_rotate local seed 0: failed: exception: by hand") as error:
        floral.run(SMALL, "local", results=results, threads=1, backend="loop", progress=False)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert list(results.glob("train/digits_rotate/local/*/failure.json"))


def test_load_has_the_rows_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write_suite(tmp_path)
    monkeypatch.setattr("floral.api.results.suite_runs", lambda *_: runs)
    loaded = floral.load(tmp_path, "methods").summary
    report = collect("methods", runs, tmp_path).summary
    assert loaded.sort("hash8").equals(report.select(loaded.columns).sort("hash8"))
    finished = floral.load(tmp_path)
    assert len(finished) == 13 and set(finished.summary["status"]) == {"done", "diverged"}
    narrowed = floral.load(tmp_path, tasks="digits_rotate", variants=["floral_1", "fedavg"], seeds=0)
    assert narrowed.summary.select("variant", "seed").sort("variant").rows() == [("fedavg", 0), ("floral_1", 0)]
    for wrong, message in (
        (
            {"tasks": "digits_rotat"},
            "tasks: no finished run has it: unknown task 'digits_rotat'; did you mean 'digits_r",
        ),
        ({"variants": ["fedavg", "ditto"]}, "variants: no finished run has it: unknown variant 'ditto'; known: "),
        ({"seeds": 7}, "seeds: no finished run has it: unknown seed '7'; known: 0, 1"),
        ({"suite": "method"}, "suite: unknown suite 'method'; did you mean 'methods'?"),
        ({"results": 3}, "results: 3 is no folder; give its path"),
    ):
        with pytest.raises(floral.ConfigError, match=re.escape(f"floral.load: {message}")):
            floral.load(**{"results": tmp_path, **wrong})
    with pytest.raises(TypeError):
        narrowed + 3
    assert "2 runs" in repr(narrowed) and "floral_1" in narrowed._repr_html_()


def test_load_says_why_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(floral.ConfigError, match=r"floral\.load: results: .* has no runs; give the folder `results`"):
        floral.load(tmp_path)
    run = write_suite(tmp_path)[0]
    with pytest.raises(floral.ConfigError, match="no finished run of suite 'quickstart'; train it with snakemake"):
        floral.load(tmp_path, "quickstart")
    path = write_run(tmp_path / "new", run) / "metrics.parquet"
    path.write_bytes(b"damaged")
    with pytest.raises(floral.ConfigError, match="the result cannot be read"):
        floral.load(tmp_path / "new").curves()
    (path.parent / "run.yaml").write_text("task: {}")
    with (
        pytest.warns(UserWarning, match="1 run of another version"),
        pytest.raises(floral.ConfigError, match="no finished run of the selected"),
    ):
        floral.load(tmp_path / "new")

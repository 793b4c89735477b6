"""Tuning reads no test row, survives a kill, and chooses the least validation loss; what diverges is a result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from floral.config import catalogue, code, search_space
from floral.config.reading import ConfigError
from floral.config.schema.tuning import Range, Rates, Space, Tuned, Tuning
from floral.config.searches import Search
from floral.config.tuned import study_values
from floral.data import federation
from floral.stages import tune as stage
from floral.stages.fetch import fetch
from floral.stages.partition import partition

TASK = {"clients": 4, "clusters": 2, "rounds": 6, "epochs": 1, "partition": {"share": 0.5}}
SPAN = Range(lowest=0.5, highest=4.0)
RULE = Tuning(budget=4, seeds=(1000, 1001), share=0.5, at_most=10, lr=SPAN, router_lr=SPAN)


def made(variant: str, rule: Tuning = RULE, values: Mapping[str, Any] | None = None) -> Search:
    task = catalogue.task("digits_rotate", TASK)
    task = task.model_copy(update={"rounds": rule.rounds(task.rounds), "eval_every": None})
    values = values or {}
    space = Space(values=values)
    axes = search_space.axes_of(space, rule, Rates(lr=task.lr, router_lr=task.router_lr))
    return Search(
        task=task, variant=catalogue.variant(variant), fidelity=catalogue.fidelity("corrected"), tuning=rule, axes=axes
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    fetch("digits", folder)
    for run in made("fedavg").references():
        partition(run.partition, folder)
    return folder


@pytest.fixture
def copy(results: Path, tmp_path: Path) -> Path:
    shutil.copytree(results, tmp_path / "results", ignore=shutil.ignore_patterns("tune"))
    return tmp_path / "results"


def tuned(search: Search, results: Path) -> tuple[Tuned, list[dict[str, Any]]]:
    chosen = stage.tune(search, results, device="cpu", backend="vmap", threads=1)
    found = stage.read(results / search.folder)
    assert found is not None
    return chosen, [{key: row[key] for key in row if key != "seconds"} for row in found["trials"]]


@pytest.mark.parametrize("variant", ["fedavg", "ditto", "floral_1", "centralised_cluster"])
def test_tuning_never_reads_test_rows(variant: str, results: Path, copy: Path) -> None:
    """The same values, bit for bit, where the test rows are garbage, and where they are not there at all."""
    search = made(variant, RULE.model_copy(update={"budget": 2, "seeds": (1000,)}))
    before = tuned(search, results)
    data = copy / "data" / "digits"
    for name in ("test_x", "test_y"):
        rows = np.load(data / f"{name}.npy")
        np.save(data / f"{name}.npy", np.full_like(rows, 9 - rows.flat[0]))
    garbage = tuned(search, copy)
    assert garbage == before
    shutil.rmtree(copy / search.folder)
    for name in ("test_x", "test_y"):
        (data / f"{name}.npy").unlink()
    assert tuned(search, copy) == before
    with pytest.raises(ConfigError, match="test_x"):  # a run would notice
        federation.load(search.trial(1000), copy)


def test_the_least_mean_validation_loss_is_chosen(results: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_now, real = [], stage.trial
    monkeypatch.setattr(stage, "trial", lambda *given: made_now.append(given[1]) or real(*given))
    chosen, rows = tuned(made("fedavg"), copy)
    assert len(made_now) == 2 * 4, "the task's learning rate is among the four, and is not trained twice"
    losses = {(row["configuration"], row["seed"]): row["validation_loss"] for row in rows}
    means = [(losses[number, 1000] + losses[number, 1001]) / 2 for number in range(5)]
    assert chosen.losses == pytest.approx(means[1:], rel=1e-5) and chosen.default == pytest.approx(means[0], rel=1e-5)
    assert chosen.rates == made("fedavg").configurations[int(np.argmin(means[1:]))].rates
    assert means[2] == means[0] and len(set(means)) == 4  # ½, 1, 2 and 4 times the task's learning rate


def test_a_killed_search_makes_only_what_is_left(results: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = made("fedavg")
    whole = tuned(search, results)
    tuned(search, copy)
    path = copy / search.folder / "trials.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "trials": found["trials"][:-3]}))
    made_now, real = [], stage.trial
    monkeypatch.setattr(stage, "trial", lambda *given: made_now.append(given[2]) or real(*given))
    assert tuned(search, copy) == whole and made_now == [1001, 1001]  # the third is the untuned run


def test_a_search_does_not_continue_with_other_code(copy: Path) -> None:
    search = made("fedavg")
    tuned(search, copy)
    path = copy / search.folder / "trials.json"
    record = json.loads(path.read_text())
    assert record["code"] == code.digests("fedavg", "mlp")
    record["code"]["floral/methods/fedavg.py"] = "00000000"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"this search began with other code: floral/methods/fedavg\.py; remove it"):
        tuned(search, copy)


def test_diverged_and_refused_configurations_are_results(results: Path) -> None:
    rule = RULE.model_copy(update={"lr": Range(lowest=1.0, highest=1e30)})
    chosen, rows = tuned(made("fedavg", rule), results)
    assert chosen.losses.count(None) == 3 and chosen.rates.lr == pytest.approx(0.1)
    assert {row["status"] for row in rows} == {"done", "diverged"}
    values = {"lam": (0.5, 100.0)}
    chosen, rows = tuned(made("pfedme", RULE, values), results)
    refused = [row for row in rows if row["status"] == "refused"]
    assert len(refused) == 4 and "`lr` times `lam`" in refused[0]["reason"] and chosen.params == {"lam": 0.5}


def test_a_search_in_which_nothing_ends_says_so(results: Path) -> None:
    rule = RULE.model_copy(update={"lr": Range(lowest=1e20, highest=1e30)})
    with pytest.raises(ConfigError, match=r"digits_rotate fedavg: no candidate finished: .*diverged.*another search"):
        tuned(made("fedavg", rule), results)


@pytest.mark.parametrize("text", ["", "[]", '{"trials": [{}]}'])
def test_damaged_trials_are_named(copy: Path, text: str) -> None:
    search = made("fedavg")
    path = copy / search.folder / "trials.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"trials\.json: damaged .*remove this file"):
        tuned(search, copy)


def test_values_are_written_beside_others(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = {name: made(name) for name in ("fedavg", "ditto")}
    with pytest.raises(ConfigError, match="digits_rotate fedavg is not tuned yet"):
        stage.write(searches.values(), copy)
    path = tmp_path / "tuned.yaml"
    monkeypatch.setattr(stage, "tuned_path", lambda task: path)
    monkeypatch.setattr("floral.config.tuned.tuned_path", lambda task: path)
    entries = {}
    for name, search in searches.items():
        entries[name], _ = tuned(search, copy)
        assert stage.write([search], copy) == [path]
    assert study_values("digits_rotate") == entries
    assert entries["ditto"].search == searches["ditto"].digest != searches["fedavg"].digest
    with pytest.raises(ConfigError, match="two suites tune this variant on this task with different values"):
        stage.write([searches["fedavg"], made("fedavg", RULE.model_copy(update={"seeds": (1001,)}))], copy)

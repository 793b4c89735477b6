"""Every sentence of the setup text is true: it is parsed, and compared with run.yaml and the partitions' manifests.

The partitions are real. A sentence that the pattern does not know fails the test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from run_folders import make_run, write_run

from floral.config import catalogue
from floral.config.run import Run
from floral.config.schema.tuning import Rates
from floral.config.tuned import tuned_values
from floral.data.samples import evaluated_on_training
from floral.report.collect import collect
from floral.report.sections.main_table import measurement
from floral.report.sections.setup import paragraphs
from floral.report.templates import template_yaml
from floral.stages.fetch import fetch
from floral.stages.partition import partition
from floral.stages.progress import Progress
from floral.stages.record import headline

PARAGRAPH = re.compile(r"""
(?P<title>.+?):\ (?P<data>the\ data\ set\ \w+|custom\ data\ \([^)]*\)|synthetic\ data\ [^,]+(?:\(.*?\))?,
  \ (?P<each_train>\d+)\ training\ and\ (?P<each_test>\d+)\ test\ samples\ for\ each\ client),
\ partition\ (?P<kind>[a-z ]+?)(?:\ \((?P<rule>.*?)\))?,\ (?P<clients>\d+)\ clients
\ (?:(?P<no_clusters>without\ true\ clusters)|in\ (?P<clusters>\d+)\ clusters\ \((?P<differ>.*?)\))\.
(?:\ After\ training,\ (?P<joining>\d+)\ more\ clients\ join(?:,\ (?P<new>\d+)\ of\ them\ with\ new\ concepts)?\.)?
(?:\ Of\ each\ client's\ training\ samples,\ (?P<kept>[\d.]+)\ %\ \(at\ least\ (?P<least>\d+)\)\ are\ kept
  (?:,\ and\ (?P<held_of_kept>[\d.]+)\ %\ of\ these\ are\ held\ out\ for\ validation)?\.)?
(?:\ (?P<held>[\d.]+)\ %\ of\ each\ client's\ training\ samples\ are\ held\ out\ for\ validation\.)?
(?P<none_held>\ No\ samples\ are\ held\ out\ for\ validation\.)?
(?:\ Of\ each\ client's\ other\ training\ samples,\ each\ method\ and\ seed\ uses\ its\ own\ random
  \ (?P<own_kept>[\d.]+)\ %\ \(at\ least\ (?P<own_least>\d+)\)\.)?
\ (?:(?P<one_seed>All\ methods\ use\ the\ same\ partition)
  |All\ (?P<same>\d+)\ seeds\ and\ all\ methods\ use\ the\ same\ partition
  |(?P<each>Each\ seed\ has\ its\ own\ partition,\ which\ all\ methods\ use)
  |The\ (?P<seeds>\d+)\ seeds\ have\ (?P<some>\d+)\ different\ partitions;
    \ all\ methods\ of\ a\ seed\ use\ the\ same\ one
  |(?P<generated>Each\ seed\ generates\ its\ own\ samples,\ which\ all\ methods\ use))\.
\ In\ each\ of\ (?P<rounds>\d+)\ rounds\ (?:(?P<all>all\ clients)|(?P<cohort>\d+)\ of\ (?P<of>\d+)\ clients)
  \ train\ for\ (?P<epochs>\d+)\ local\ epochs?(?:\ of\ (?P<steps>\d+)\ steps)?
  \ on\ batches\ of\ (?P<batch>\d+),\ with\ SGD,\ unless\ a\ method\ states\ otherwise\.
\ The\ task's\ model\ is\ (?P<model>\w+)(?:\ \((?P<arguments>.*?)\))?\.
(?:\ Also:\ (?P<also>.*?)\.)?
\ (?:(?P<all_tuned>Learning\ rates\ are\ tuned)
  |Learning\ rate\ (?P<lr>[\d.e-]+),\ of\ router\ logits\ (?P<router_lr>[\d.e-]+)
   (?P<some_tuned>;\ tuned\ methods\ have\ their\ own)?)\.
\ Clients\ are\ evaluated\ on\ (?P<evaluated>.*?)\.
\ Fidelity:\ (?P<fidelity>\w+)(?:,\ except\ (?P<switches>.*))?\.
""", re.VERBOSE)  # fmt: skip

ROTATE, SHIFT, SKEWED, LINEAR = "digits_rotate", "digits_label_shift", "digits_dirichlet", "synthetic_linear"
REDUCED = "digits_rotate_reduced"
THINNED = {"share": 0.05, "min_rows": 10}
CASES: dict[str, dict[str, Any]] = {
    "as the task is": {},
    "official": {"fidelity": "official"},
    "reduced": {"task": REDUCED},
    "reduced, official": {"task": REDUCED, "fidelity": "official"},
    "reduced, official but shared": {"task": REDUCED, "fidelity": "official", "switches": {"subset": "shared"}},
    "reduced, own subsets": {"task": REDUCED, "switches": {"subset": "per_variant"}},
    "switches": {"switches": {"batches": "fixed", "validation": "none", "evaluation": "sampled"}},
    "one partition, corrected": {"switches": {"partition": "one"}},
    "a partition per seed, official": {"fidelity": "official", "switches": {"partition": "per_seed"}},
    "another hold-out": {"partition": {"validation": 0.3}},
    "no hold-out": {"partition": {"validation": 0}},
    "thinned": {"partition": {**THINNED, "validation": 0}},
    "one concept": {"task": SKEWED},
    "one concept, assumed clusters": {"task": SKEWED, "assumed_clusters": 3},
    "no shift, and clusters": {"shift": {"kind": "none"}, "clusters": 4},
    "other assumed clusters": {"assumed_clusters": 3},
    "label shift": {"task": SHIFT, "clusters": 3, "clients": 9},
    "class groups": {"shift": {"kind": "none"}, "partition": {"kind": "class_groups"}, "clusters": 2},
    "class groups that are rotated": {"partition": {"kind": "class_groups"}, "clusters": 2},
    "few classes": {"partition": {"kind": "pathological", "classes_per_client": 4}},
    "unequal sizes, label noise": {"partition": {"kind": "size_skew", "alpha": 1.0, "label_noise": 0.1}},
    "unequal clusters": {"partition": {"cluster_shares": [0.75, 0.25]}, "clusters": 2},
    "participation": {"participation": 0.26, "clients": 8, "rounds": 7, "epochs": 3, "batch": 5},
    "participation that rounds to all": {"participation": 0.99, "clients": 8},
    "participation of less than one client": {"participation": 0.01, "clients": 8},
    "steps": {"steps_per_epoch": 2, "epochs": 2},
    "server, normalised": {"server": {"optimiser": "adam", "lr": 0.01}, "normalise": {"mean": [0.5], "std": [0.25]}},
    "joining": {"unseen": {"seen_cluster": 3, "new_concept": 2}},
    "joining, one concept": {"shift": {"kind": "none"}, "unseen": {"seen_cluster": 3}},
    "synthetic": {"task": LINEAR},
    "synthetic, equal digests": {"task": LINEAR, "partition": {"validation": 0}},
    "synthetic, official": {"task": LINEAR, "fidelity": "official"},
    "evaluated on training samples": {"fidelity": "official", "published_split": "train"},
    "evaluated on all training samples": {"published_split": "train", "switches": {"eval_split": "train"}},
    "rates": {"lr": 0.02, "router_lr": 0.3},
    "custom": {"data": "custom", "shift": {"kind": "none"}, "partition": {"kind": "natural", "min_rows": 1}},
    "custom, equal digests": {
        "data": "custom", "shift": {"kind": "none"}, "partition": {"kind": "natural", "min_rows": 1, "validation": 0},
    },
    "custom, two of three seeds equal": {
        "data": "custom", "clients": 3, "shift": {"kind": "none"},
        "partition": {"kind": "natural", "min_rows": 1, "validation": 0}, "seeds": range(6),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the data set digits, and an archive of custom data with four clients."""
    folder = tmp_path_factory.mktemp("setup")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (80, 8, 8)).astype(np.uint8), np.arange(80) % 4
    np.savez(folder / "mine.npz", x=x, y=y, client=np.repeat(["ada", "bob", "eve", "joe"], 20))
    fetch("digits", folder / "results")
    (folder / "whole").mkdir()
    (folder / "whole" / "data").symlink_to(folder / "results" / "data")
    return folder


def made(place: Path, case: str, seeds=None, methods=None, tuned: tuple[str, ...] = ()) -> tuple[Path, list[Run]]:
    """The finished runs of a case, with real partitions. `methods` maps variants to changed hyper-parameters."""
    change = dict(CASES[case])
    task, fidelity, switches = (
        change.pop("task", ROTATE),
        change.pop("fidelity", "corrected"),
        change.pop("switches", {}),
    )
    seeds = seeds or change.pop("seeds", (0, 1))
    change.pop("seeds", None)
    if change.get("data") == "custom":
        change |= {"data": {"kind": "arrays", "path": str(place / "mine.npz")}, "clients": change.get("clients", 4)}
    runs = []
    for variant, params in (methods or {"fedavg": {}, "local": {}}).items():
        for seed in seeds:
            run = make_run(task, variant, seed, **change)
            run = run.model_copy(update={
                "fidelity": catalogue.fidelity(fidelity, switches), "variant": catalogue.variant(variant, params),
                **({"own_rates": Rates(lr=0.5, router_lr=0.5)} if variant in tuned else {}),
            })  # fmt: skip
            runs.append(run)
    results = place / "results"
    if not isinstance(runs[0].task.data, str) and runs[0].partition.data_digest:
        fetch(runs[0].task.data, results)
    for run in runs:
        if not (results / run.folder).exists():
            partition(run.partition, results, run.task)
            summary = write_run(results, run) / "summary.json"
            values = json.loads(summary.read_text()) | {"partition_digest": manifest(results, run)["digest"]}
            summary.write_text(json.dumps(values))
    return results, runs


def manifest(results: Path, run: Run) -> dict[str, Any]:
    return json.loads((results / run.partition.folder / "card.json").read_text())


def claims(results: Path, runs: list[Run]) -> tuple[dict[str, str], str]:
    """What the only configuration's paragraph says, and the rest of the text."""
    text = paragraphs(collect("quickstart", runs, results), {})["text"]
    first, _, rest = text.partition("\n\n")
    said = PARAGRAPH.fullmatch(first)
    assert said, f"a sentence that this test does not know: {first}"
    return {key: value for key, value in said.groupdict().items() if value is not None}, rest


@pytest.mark.parametrize("case", CASES)
def test_the_text_agrees_with_run_yaml_and_the_manifests(place: Path, case: str) -> None:
    results, runs = made(place, case)
    said, _ = claims(results, runs)
    values = [yaml.safe_load((results / run.folder / "run.yaml").read_text()) for run in runs]
    manifests = [manifest(results, run) for run in runs]
    task, rules, card = values[0]["task"], values[0]["fidelity"]["switches"], manifests[0]
    check_clients(said, task, card)
    check_held_out(said, task, card, results, runs[0])
    check_partitions(said, manifests, {value["seed"] for value in values}, task)
    check_training(said, task)
    check_evaluation(said, runs[0])
    assert said["fidelity"] == values[0]["fidelity"]["name"]
    usual = catalogue.fidelity(said["fidelity"]).switches
    changed = [f"{name.replace('_', ' ')} {value}" for name, value in rules.items() if value != usual[name]]
    assert sorted(filter(None, said.get("switches", "").split(", "))) == sorted(changed)


def check_clients(said: dict[str, str], task: dict[str, Any], card: dict[str, Any]) -> None:
    assert int(said["clients"]) == card["clients"]
    assert ("no_clusters" in said) == (card["clusters"] == 1)
    assert int(said.get("clusters", 1)) == card["clusters"]
    assert ("shift" in said.get("differ", "")) == (task["shift"]["kind"] != "none" and card["clusters"] > 1)
    assert ("other classes" in said.get("differ", "")) == (task["partition"]["kind"] == "class_groups")
    assert said["kind"].replace(" ", "_") == task["partition"]["kind"]
    for key in ("alpha", "classes_per_client", "label_noise", "cluster_shares"):
        assert (key.replace("_", " ") in said.get("rule", "")) == (task["partition"].get(key) is not None)
    if isinstance(task["data"], str):
        assert said["data"] == f"the data set {task['data']}"
    elif "path" in task["data"]:
        assert said["data"] == "custom data (arrays mine.npz)"
    else:
        assert said["data"].startswith(f"synthetic data {task['data']['kind']}")
        train = card["rows"]["train"]["max"] + card["rows"]["validation"]["max"]
        assert [int(said["each_train"]), int(said["each_test"])] == [train, card["rows"]["test"]["max"]]
    joining = card.get("unseen", {"seen_cluster": 0, "new_concept": 0})
    assert int(said.get("joining", 0)) == joining["seen_cluster"] + joining["new_concept"]
    assert int(said.get("new", 0)) == joining["new_concept"]


def check_held_out(said: dict[str, str], task: dict[str, Any], card: dict[str, Any], results: Path, run: Run) -> None:
    """Each client's number of samples is rounded, so that shares agree up to half a sample of each client."""
    train, held = (card["rows"][split]["total"] for split in ("train", "validation"))
    claimed = float(said.get("held", said.get("held_of_kept", 0)))
    assert ("none_held" in said or ("kept" in said and "held_of_kept" not in said)) == (held == 0)
    assert claimed * (train + held) / 100 == pytest.approx(held, abs=0.5 * card["clients"])
    thinned = card.get("thinned_at_training")
    assert ("own_kept" in said) == (thinned is not None)
    if thinned:
        assert [float(said["own_kept"]), int(said["own_least"])] == [100 * thinned["share"], thinned["min_rows"]]
    whole = run.model_copy(update={"task": run.task.model_copy(update={
        "partition": run.task.partition.model_copy(update={"share": 1.0, "validation": 0.0})})})  # fmt: skip
    if task["partition"]["kind"] != "size_skew":
        other = results.with_name("whole")  # a manifest describes the task for which it was made last
        partition(whole.partition, other, whole.task)
        of = manifest(other, whole)["rows"]["train"]
        expected = max(float(said.get("kept", 100)) / 100 * of["total"], card["clients"] * int(said.get("least", 0)))
        assert train + held == pytest.approx(expected, abs=0.5 * card["clients"])


def check_partitions(
    said: dict[str, str], manifests: list[dict[str, Any]], seeds: set[int], task: dict[str, Any]
) -> None:
    """Synthetic samples depend on the seed of the run, even where the table of the partition is the same."""
    assert ("generated" in said) == ("samples_per_client" in task["data"])
    if "generated" in said:
        return
    digests = len({card["digest"] for card in manifests})
    assert ("same" in said) == (digests == 1) and int(said.get("same", len(seeds))) == len(seeds)
    assert ("each" in said) == (digests == len(seeds))
    assert int(said.get("some", digests)) == digests and int(said.get("seeds", len(seeds))) == len(seeds)


def check_training(said: dict[str, str], task: dict[str, Any]) -> None:
    cohort = max(1, round(task["participation"] * task["clients"]))
    assert int(said.get("cohort", task["clients"])) == cohort and ("all" in said) == (cohort == task["clients"])
    assert int(said.get("of", task["clients"])) == task["clients"]
    assert [int(said[key]) for key in ("rounds", "epochs", "batch")] == [
        task[key] for key in ("rounds", "epochs", "batch")
    ]
    assert said.get("steps") == (str(task["steps_per_epoch"]) if task.get("steps_per_epoch") else None)
    assert [float(said["lr"]), float(said["router_lr"])] == [task["lr"], task["router_lr"]]
    assert said["model"] == task["model"]["kind"]
    for key, value in task["model"].items():
        assert key == "kind" or f"{key.replace('_', ' ')} {value}" in said["arguments"].replace("(", "[").replace(
            ")", "]"
        )
    also = said.get("also", "")
    assert ("ADAM" in also) == (task["server"]["optimiser"] == "adam") and ("mean" in also) == bool(task["normalise"])
    assumed = task.get("assumed_clusters") or task["clusters"]
    assert int(re.sub(r".*assume (\d+).*|.*", r"\1", also) or said.get("clusters", 1)) == assumed


def check_evaluation(said: dict[str, str], run: Run) -> None:
    """`headline` chooses the samples when results are written."""
    evaluated, population = said["evaluated"], headline(run, Progress(execution={})) == "population"
    assert ("their own" in evaluated) != population
    assert ("training samples" in evaluated) == evaluated_on_training(run)
    assert ("under the shift" in evaluated) == (population and run.task.shift.kind != "none")
    assert ("classes" in evaluated) == (population and run.task.partition.kind == "class_groups")
    assert ("no noise" in evaluated) == (population and run.task.loss == "mse")


@pytest.mark.parametrize("case", CASES)
def test_the_main_table_says_how_it_was_measured(place: Path, case: str) -> None:
    """Its texts follow the switches and the partitions, and not the name of the fidelity."""
    results, runs = made(place, case)
    captions = template_yaml("captions.yaml")["main"]
    text = measurement(collect("quickstart", runs, results), captions)
    own = headline(runs[0], Progress(execution={})) == "test"
    digests, generated = {manifest(results, run)["digest"] for run in runs}, runs[0].task.loss == "mse"
    expected = {
        "population": not own,
        "noise_free": not own and generated,
        "own": own,
        "sampled": runs[0].fidelity["evaluation"] == "sampled",
        "training": evaluated_on_training(runs[0]),
        "one_partition": len(digests) == 1 and not generated,
        "per_variant": "thinned_at_training" in manifest(results, runs[0]),
    }
    assert text == " ".join(captions[key] for key, holds in expected.items() if holds)


METHODS: dict[str, dict[str, Any]] = {
    "defaults": {"fedavg": {}, "fedprox": {}},
    "a changed value": {"fedavg": {}, "fedprox": {"mu": 0.7}},
    "two changed values": {"fedprox": {"mu": 0.7}, "floral_1": {"rank": 0.05, "temperature": 2.0}},
}


@pytest.mark.parametrize("case", METHODS)
def test_changed_hyper_parameters_are_named_and_no_others(place: Path, case: str) -> None:
    results, runs = made(place, "as the task is", methods=METHODS[case])
    _, rest = claims(results, runs)
    values = [yaml.safe_load((results / run.folder / "run.yaml").read_text())["variant"] for run in runs]
    changed = {}
    for value in values:
        usual = catalogue.variant(value["name"]).params
        changes = {name: now for name, now in value["params"].items() if now != usual[name]}
        if changes:
            changed[value["title"]] = ", ".join(f"{name.replace('_', ' ')} {now}" for name, now in changes.items())
    said = re.search(r"Changed from the methods' defaults: (.*?)\.\n", rest)
    assert (said[1] if said else "") == "; ".join(f"{title} ({texts})" for title, texts in changed.items())


@pytest.mark.parametrize("tuned", [(), ("fedavg",), ("fedavg", "fedprox")])
def test_tuning_is_stated_for_the_methods_that_were_tuned(place: Path, tuned: tuple[str, ...]) -> None:
    results, runs = made(place, "as the task is", methods={"fedavg": {}, "fedprox": {}}, tuned=tuned)
    said, rest = claims(results, runs)
    have = [bool(yaml.safe_load((results / run.folder / "run.yaml").read_text())["own_rates"]) for run in runs]
    assert ("all_tuned" in said) == all(have) and ("some_tuned" in said) == (any(have) and not all(have))
    assert ("No values were tuned." in rest) == (not any(have))
    assert ("All methods were tuned" in rest) == all(have)
    assert ("Some methods (FedAvg) were tuned" in rest) == (any(have) and not all(have))
    if any(have):
        entry = tuned_values(ROTATE)["fedavg"]
        whole = catalogue.task(ROTATE).rounds
        found = re.search(r"with (\d+) candidates .* after ([\d.]+) % of the rounds \(at most (\d+)\)", rest)
        assert found and int(found[1]) == entry.budget
        assert min(int(found[3]), round(float(found[2]) / 100 * whole)) == entry.rounds


def test_a_tuned_method_names_what_the_suite_changed_and_not_what_was_tuned(place: Path) -> None:
    """The search of FedProx chooses `mu`."""
    results, runs = made(
        place, "as the task is", methods={"fedprox": {"mu": 0.7, "statistics": "private"}}, tuned=("fedprox",)
    )
    assert "Changed from the methods' defaults: FedProx (statistics private)." in claims(results, runs)[1]


def test_seeds_and_methods_that_are_not_everywhere_are_said(place: Path) -> None:
    results, whole = made(place, "as the task is", seeds=(0, 1, 2))
    _, rest = claims(results, whole)
    assert "Seeds 0, 1, 2: 6 runs, 6 finished." in rest and "part of the tasks" not in rest
    _, rest = claims(results, whole[:-1])
    assert "Seeds 0, 1, 2 (not all methods have all seeds): 5 runs, 5 finished." in rest
    _, other = made(place, "one concept", methods={"fedavg": {}})
    text = paragraphs(collect("quickstart", whole + other, results), {})["text"]
    assert "Some methods run on a part of the tasks only." in text


def test_a_run_that_is_alone_says_nothing_about_other_seeds(place: Path) -> None:
    results, runs = made(place, "official", seeds=(0,))
    assert "one_seed" in claims(results, runs)[0]


def test_runs_without_data_claim_nothing_about_them(results: Path) -> None:
    run = Run(
        task=catalogue.task("noop"),
        variant=catalogue.variant("fedavg"),
        seed=0,
        fidelity=catalogue.fidelity("corrected"),
    )
    text = paragraphs(collect("noop", [run], results), {})["text"]
    assert text.startswith(f"{run.task.title}: runs without data and without training.\n")

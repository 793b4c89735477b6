"""Wrong YAML is refused while it is read, by file, key and remedy; what a run's name and partition depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import make_run

from floral.config import catalogue, data_sets, plugins
from floral.config.reading import ConfigError, parse
from floral.config.run import Run
from floral.config.schema.data import DataFile, DataSet
from floral.config.schema.method import Parameter
from floral.config.schema.task import Task
from floral.config.suites import suite_runs

ROOT = Path(__file__).parents[2]
UNSEEN = {"seen_cluster": 1, "new_concept": 1}
SYNTHETIC = {"kind": "linear", "samples_per_client": 8}

Write = Callable[..., None]


def blocks(*changes: dict[str, Any]) -> dict[str, Any]:
    block = {"tasks": ["digits_rotate"], "variants": ["floral_1"], "seeds": [0]}
    return {"title": "Mine", "runs": [block | change for change in changes]}


def refusal(suite: str = "mine") -> str:
    with pytest.raises(ConfigError) as refused:
        suite_runs(suite)
    return str(refused.value)


# ---------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"hidden": 0}, ["model: hidden", "greater than 0 (found 0)"]),
        ({"hidden": "64"}, ["model: hidden", "a whole number, such as 1 (found '64')"]),
        ({"hidden": 6.5}, ["model: hidden", "a whole number"]),
        ({"hidden": True}, ["model: hidden", "a whole number, such as 1 (found True)"]),
        ({"batch_norm": 1}, ["model: batch_norm", "true or false (found 1)"]),
        ({"hiden": 64}, ["model: unknown key 'hiden'; did you mean 'hidden'?"]),
        ({"width": 2.0}, ["model: unknown key 'width'"]),
        (
            {"kind": "module", "build": "a.py:f", "layers": 3},
            ["adapt, arguments, build, freeze, head, ignore, inputs, w"],
        ),
        ({"kind": "mlpp"}, ["model.kind: unknown model 'mlpp'; did you mean 'mlp'?"]),
        ({"kind": "cnn", "channels": 32}, ["model: channels", "must be a list; write `channels: [32]` (found 32)"]),
        ({"kind": "cnn", "channels": [32]}, ["model: channels.1", "this entry of the list is missing"]),
        ({"kind": "cnn", "channels": [32, -64]}, ["model: channels.1", "greater than 0 (found -64)"]),
    ],
)
def test_model_options_have_the_types_of_build(write: Write, model: dict[str, Any], words: list[str]) -> None:
    write("suites/mine", **blocks({"task": {"model": model}}))
    said = refusal()
    assert all(word in said for word in ["config/suites/mine.yaml: ", *words]), said


def test_a_model_option_without_a_default_is_required(write: Write) -> None:
    write("tasks/mine", extends="synthetic_linear", model={"kind": "mlp"})
    with pytest.raises(ConfigError, match=r"config/tasks/mine\.yaml: model: hidden: is missing; add this key"):
        catalogue.task("mine")
    write("tasks/typo", extends="synthetic_linear", model={"kind": "mlp", "hiden": 3})
    with pytest.raises(
        ConfigError, match=r"^config/tasks/typo\.yaml: model: unknown key 'hiden'; did you mean 'hidden'\?$"
    ):
        catalogue.task("typo")


def test_model_options_that_fit_are_taken_as_written() -> None:
    model = {"kind": "cnn", "channels": [32, 64]}
    assert catalogue.task("mnist_rotate", {"model": model}).model.arguments == {"channels": [32, 64]}


@pytest.mark.parametrize("annotation", ["", ": Path", ": int | Path"])
def test_a_model_author_learns_which_types_can_be_checked(
    annotation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "floral" / "models" / "strange.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"def build(shape, outputs, *, where{annotation}, width=1.0): ...\n")
    monkeypatch.setattr(plugins, "FLORAL", tmp_path / "floral")
    with pytest.raises(ConfigError, match=r"floral/models/strange\.py: build: where: .* use int, float, bool, str"):
        catalogue.model_options("strange")


# ----------------------------------------------------------------------------------- tasks and methods


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": "mse"}, ["loss: mse", "set `loss: cross_entropy`"]),
        ({"data": SYNTHETIC, "shift": {"kind": "none"}}, ["loss: cross_entropy", "set `loss: mse`"]),
        ({"data": SYNTHETIC, "loss": "mse"}, ["shift.kind: rotate", "remove the key `shift`"]),
        ({"lr": float("nan")}, ["lr: ", "finite number"]),
        ({"partition": {"kind": "dirichlet"}}, ["partition: ", "dirichlet` needs `alpha`"]),
        ({"partition": {"alpha": 0.1}}, ["partition: ", "iid` has no `alpha`", "remove the key `alpha`"]),
        (
            {"partition": {"kind": "dirichlet", "alpha": 0.1}, "unseen": UNSEEN},
            ["`unseen` cannot be used", "other than iid and natural", "remove the key `unseen`"],
        ),
        ({"shift": {"kind": "none"}, "unseen": UNSEEN}, ["unseen.new_concept", "set `new_concept: 0`"]),
        (
            {"partition": {"kind": "natural"}, "unseen": {**UNSEEN, "share": 0.1}},
            ["`unseen.share` is for `partition.kind: iid`"],
        ),
        ({"unseen": {"seen_cluster": 0, "new_concept": 0}}, ["`unseen` has no clients"]),
        ({"unseen": {**UNSEEN, "share": 1.0}}, ["unseen.share: ", "less than 1"]),
    ],
)
def test_a_task_fits_its_data(write: Write, change: dict[str, Any], words: list[str]) -> None:
    write("tasks/mine", extends="digits_rotate", **change)
    with pytest.raises(ConfigError) as refused:
        catalogue.task("mine")
    said = str(refused.value)
    assert all(word in said for word in ["config/tasks/mine.yaml: ", *words]), said
    assert "Value error" not in said and len(said) < 200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_parameter_is_a_finite_number(write: Write, value: float) -> None:
    write("suites/mine", **blocks({"method": {"temperature": value}}))
    said = refusal()
    assert said.startswith("config/suites/mine.yaml: runs.0.method: temperature: ") and "not a finite number" in said
    with pytest.raises(ValueError, match="not a finite number"):
        Parameter(default=1.0, doc="").accept(value)


def test_a_wrong_parameter_is_sought_where_it_stands(write: Write) -> None:
    write("suites/mine", **blocks({"method": {"temprature": 2.0}}))
    place = "config/suites/mine.yaml: runs.0.method"
    assert refusal() == f"{place}: unknown parameter 'temprature'; did you mean 'temperature'?"
    values = yaml.safe_load((ROOT / "config/methods/floral.yaml").read_text())
    values["variants"]["floral_1"]["set"]["temperature"] = float("inf")
    write("methods/floral", **values)
    write("suites/mine", **blocks({}))
    assert refusal().startswith("config/methods/floral.yaml: variants.floral_1: temperature: inf is not a finite")


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ({"a": "a"}, "config/tasks/a.yaml: these tasks extend each other in a circle: a → a"),
        ({"a": "b", "b": "c", "c": "b"}, "config/tasks/c.yaml: these tasks extend each other in a circle: b → c → b"),
        (
            {"a": "digits_rotat"},
            "config/tasks/a.yaml: extends: unknown task 'digits_rotat'; did you mean 'digits_rotate'",
        ),
        ({"a": ["b"]}, "config/tasks/a.yaml: extends: expected the name of one task, but found ['b']"),
    ],
)
def test_extends_leads_to_a_task(write: Write, parents: dict[str, Any], words: str) -> None:
    for name, parent in parents.items():
        write(f"tasks/{name}", extends=parent)
    with pytest.raises(ConfigError) as refused:
        catalogue.task("a")
    assert str(refused.value).startswith(words)


# -------------------------------------------------------------------------------------------- switches


def run(task: str = "digits_rotate_reduced", fidelity: Any = "corrected", **switches: Any) -> Run:
    rules = catalogue.fidelity(fidelity, switches)
    return Run(task=catalogue.task(task), variant=catalogue.variant("floral_1"), seed=3, fidelity=rules)


def test_subset_and_validation_are_switches_of_their_own() -> None:
    own = catalogue.task("digits_rotate_reduced").partition
    assert own.share < 1 and own.validation > 0
    for subset, share in (("shared", own.share), ("per_variant", 1.0)):
        for validation, held_out in (("held_out", own.validation), ("none", 0.0)):
            spec = run(subset=subset, validation=validation).partition.partition
            assert (spec.share, spec.validation, spec.min_rows) == (share, held_out, own.min_rows)
    assert run().partition.partition == own
    official = run(fidelity="official").partition
    assert (official.partition.share, official.partition.validation, official.seed) == (1.0, 0.0, 42)


def test_what_only_the_report_reads_does_not_name_a_run() -> None:
    names = [name for name, switch in catalogue.switches().items() if switch.report_only]
    assert names == ["diverged_runs"]
    for name, switch in catalogue.switches().items():
        if switch.adaptor is not None:
            continue
        hashes = {run(**{name: choice}).hash8 for choice in switch.choices}
        assert len(hashes) == (1 if switch.report_only else len(switch.choices)), name


@pytest.mark.parametrize(
    ("task", "variant", "names"),
    [
        ("cifar10_rotate_reduced", "floral_1", 2),
        ("cifar10_rotate_reduced", "local_adaptor", 2),
        ("cifar10_rotate_reduced", "fedavg", 1),
        ("cifar10_rotate_reduced", "ensemble", 1),
        ("digits_rotate", "floral_1", 1),
    ],
)
def test_a_switch_of_an_adaptor_kind_names_only_runs_with_this_adaptor(task: str, variant: str, names: int) -> None:
    hashes = set()
    for choice in ("scalar", "matrix"):
        fidelity = catalogue.fidelity("corrected", {"conv_preconditioner": choice})
        hashes.add(make_run(task, variant, 0).model_copy(update={"fidelity": fidelity}).hash8)
    assert len(hashes) == names


def test_a_key_that_a_task_does_not_have_is_no_part_of_its_hash() -> None:
    """So tasks without unseen clients, and partitions without an alpha, keep the names of their folders."""
    values = run().model_dump(mode="json")
    assert "unseen" not in values["task"] and "alpha" not in values["task"]["partition"]
    assert "unseen" not in run().partition.model_dump(mode="json")
    joined = run()
    joined = joined.model_copy(update={"task": catalogue.task("digits_rotate", {"unseen": UNSEEN})})
    assert "unseen" in joined.partition.model_dump(mode="json")


@pytest.mark.parametrize(
    ("sha256", "options", "counts"), [("0" * 64, {}, False), (None, {}, True), ("0" * 64, 5, True)]
)
def test_how_data_of_open_content_are_read_is_part_of_the_hash(
    write: Write, monkeypatch: pytest.MonkeyPatch, sha256: str | None, options: Any, counts: bool
) -> None:
    """Promised content that is read without options keeps the hashes that it has."""
    entry = DataSet(title="", reader="idx", files=(DataFile(path="x", sha256=sha256),))
    hashes = set()
    for reader in ("idx", "digits_csv"):
        made = entry.model_copy(update={"reader": reader, "options": {"size": options} if options else {}})
        monkeypatch.setattr(data_sets, "data_lock", lambda made=made: {"digits": made})
        hashes.add(run().hash8)
    assert len(hashes) == (2 if counts else 1)


def test_one_run_has_one_rule_for_the_report(write: Write) -> None:
    write("suites/mine", **blocks({}, {"switches": {"diverged_runs": "dropped"}}))
    said = refusal()
    assert "config/suites/mine.yaml: runs.1.switches: digits_rotate floral_1 seed 0" in said
    assert "give both blocks the same" in said
    write("suites/mine", **blocks({}, {}))
    assert len(suite_runs("mine")) == 1


def test_a_parameter_added_later_leaves_runs_at_its_default_as_they_were():
    """Its other values are other runs."""

    def run(**params: Any) -> Run:
        variant = catalogue.variant("floral_1", params)
        return Run(
            task=catalogue.task("digits_rotate"), variant=variant, seed=0, fidelity=catalogue.fidelity("corrected")
        )

    assert "norm" in run().variant.params and "norm" not in run().identity()["variant"]["params"]
    assert run(norm="none").hash8 == run().hash8
    assert run(norm="plain").identity()["variant"]["params"]["norm"] == "plain"


# ---------------------------------------------------------------------------------------------- suites of suites


def test_a_suite_of_suites_has_all_their_runs_once(write: Write) -> None:
    write("suites/theirs", **blocks({"seeds": [0, 1]}))
    write("suites/mine", suites=["theirs"], **blocks({"seeds": [1, 2]}))
    assert [run.seed for run in suite_runs("mine")] == [0, 1, 2]
    write("suites/only", title="Theirs alone", suites=["theirs"])
    assert [run.hash8 for run in suite_runs("only")] == [run.hash8 for run in suite_runs("theirs")]


def test_a_suite_of_suites_that_gives_no_run_is_refused(write: Write) -> None:
    write("suites/mine", title="Nothing")
    assert "config/suites/mine.yaml: " in refusal() and "name other suites" in refusal()
    write("suites/mine", title="Itself", suites=["theirs"])
    write("suites/theirs", title="Back again", suites=["mine"])
    assert "mine → theirs → mine" in refusal()
    write("suites/mine", title="Unknown", suites=["their"])
    assert "'their'" in refusal() and "theirs" in refusal()


# ------------------------------------------------------------------------------------------ keys that may be left out

ARRAYS = {"kind": "arrays", "path": "mine.npz"}


def test_keys_that_fedavg_does_not_need_have_defaults() -> None:
    """The hash is that of a task that writes the same values."""
    values = {"title": "Mine", "data": ARRAYS, "clients": 4, "participation": 1, "rounds": 1, "batch": 2, "lr": 0.3}
    values |= {"name": "mine", "model": {"kind": "mlp", "hidden": 3}}
    short, full = (parse(Task, {**values, **more}, "mine") for more in ({}, {"clusters": 1, "router_lr": 0.3}))
    assert short.model_dump() == full.model_dump() and short.router_lr == 0.3 and short.clusters == 1
    for differing in ({"shift": {"kind": "rotate"}}, {"partition": {"kind": "class_groups"}}):
        with pytest.raises(ConfigError, match="but `clusters` is missing; add the number of clusters"):
            parse(Task, {**values, **differing}, "mine")

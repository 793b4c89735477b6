"""Each contract of `floral check` fails for a method, model or task that breaks it, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import simulate
from projects import ROOT

from floral.check import contracts, methods, models, tasks
from floral.check.contracts import Broken
from floral.check.outcomes import Check, outcomes
from floral.cli.main import main
from floral.cli.parser import parser
from floral.config import catalogue, plugins
from floral.core.spec import Method, Phase, Routing, Scope
from floral.core.streams import Shapes


def with_group(name: str, **values: Any) -> Callable[[Method], Method]:
    return lambda method: replace(method, groups={**method.groups, name: replace(method.groups[name], **values)})


def with_predict(wrap: Callable[..., Any]) -> Callable[[Method], Method]:
    """A method whose outputs are wrap(outputs, call number)."""

    def change(method: Method) -> Method:
        calls = iter(range(1, 10**9))

        def predict(view: Any, x: torch.Tensor, noise: Any, mask: Any) -> Any:
            outputs, statistics = method.predict(view, x, noise, mask)
            return wrap(outputs, next(calls)), statistics

        return replace(method, predict=predict)

    return change


def zeros(method: Method) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in method.groups["base"].init().items()}


def drawn(method: Method) -> Method:
    return with_group("base", init=lambda: {k: torch.rand_like(t) for k, t in method.groups["base"].init().items()})(
        method
    )


BROKEN: dict[str, tuple[str, Callable[..., None], Callable[[Method], Method], dict[str, Any], str]] = {
    "rate": (
        "fedavg", contracts.training_changes_predictions, with_group("base", lr=0.0), {},
        r"after 3 rounds, the outputs of clients 0, .* are as before training",
    ),
    "own rate": (
        "fedavg", contracts.zero_rate_changes_nothing, with_group("base", lr=0.1), {},
        r"with `lr: 0`, the outputs of client 0 change by ",
    ),
    "global only": (
        "local", partial(contracts.global_only_is_true, global_only=True), lambda method: method, {},
        "`global_only` is true, but clients are served different models",
    ),
    "not global only": (
        "fedavg", partial(contracts.global_only_is_true, global_only=False), lambda method: method, {},
        "`global_only` is false, but clients are served the same models",
    ),
    "batch": (
        "fedavg", contracts.samples_are_independent, with_predict(lambda y, _: y - y.mean(0)), {},
        "alone, a sample has outputs that differ by",
    ),
    "counter": (
        "fedavg", contracts.a_round_is_a_function_of_its_state, with_predict(lambda y, call: y * (1 + call / 100)),
        {"backend": "loop", "chunk": 1}, "round 2, computed twice from the same state, differs: ",
    ),
    "seed": (
        "fedavg", contracts.initial_values_follow_from_the_seed, drawn, {},
        "two models with the same seed start differently: value/base/",
    ),
    "constant": (
        "fedavg", contracts.initial_values_follow_from_the_seed,
        lambda method: with_group("base", init=lambda: zeros(method))(method), {},
        "models with the seeds 0 and 1 start with the same values",
    ),
    "shape": (
        "fedavg", partial(contracts.outputs_have_the_right_shape, outputs=5),
        with_predict(lambda y, _: y.unsqueeze(1)), {},
        r"3 samples give outputs of shape \[3, 1, 5\], expected \[3, 5\]",
    ),
    "value": (
        "fedavg", partial(contracts.backends_agree, tolerance=1e-10, backends=["vmap"]),
        with_predict(lambda y, call: y * (1 + call / 100)), {},
        "after 3 rounds, backend vmap and backend loop disagree: value/base/.* differs by",
    ),
    "chunks": (
        "fedavg", contracts.chunks_do_not_matter, with_predict(lambda y, call: y * (1 + call / 100)), {},
        "2 clients computed at once give other numbers than 1: ",
    ),
    "order": (
        "fedavg", contracts.cohort_order_is_irrelevant, with_predict(lambda y, call: y * (1 + call / 100)), {},
        "the opposite order of clients gives other numbers: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_contract_fails_for_what_breaks_it(name: str) -> None:
    variant, contract, change, how, message = BROKEN[name]
    with pytest.raises(Broken, match=message):
        contract(partial(simulate, variant, change=change), **how)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda method: "a method", "`build` returns str, not a Method"),
        (
            lambda method: replace(method, groups={"all": method.groups["base"]}),
            "no group with the name base",
        ),
        (lambda method: replace(method, phases=(Phase(train=("bse",)),)), "a phase trains bse, which is no"),
        (with_group("base", scope=Scope.CLUSTERED), "a group is CLUSTERED, but the routing has not exactly one of"),
        (
            lambda method: replace(
                with_group("base", scope=Scope.CLUSTERED)(method),
                routing=Routing(cluster_of_client=torch.zeros(3, dtype=torch.long)),
            ),
            "cluster_of_client has 3 entries for 7 clients",
        ),
    ],
)
def test_an_incomplete_declaration_is_named(change: Callable[[Method], Any], message: str) -> None:
    with pytest.raises(Broken, match=message):
        contracts.declaration_is_complete(change(simulate("fedavg").method), 7)


def test_a_method_that_changes_absent_or_frozen_values_is_named() -> None:
    simulation = simulate("local", participation=0.5, backend="vmap", chunk=3)
    train = type(simulation).train

    class Forgetful(type(simulation)):
        def train(self, state: Any, round: int) -> Any:
            done = train(self, state, round)
            for tensor in state.values["base"].values():
                tensor.add_(1.0)
            return done

    with pytest.raises(Broken, match=r"base/.* of client \d changed in a round without this client"):
        contracts.absent_clients_keep_their_values(partial(simulate, "local", kind=Forgetful))
    frozen = partial(simulate, "fedavg", kind=Forgetful, change=with_group("base", fixed=True, lr=0.0))
    with pytest.raises(Broken, match=r"base/.* is frozen, but has changed"):
        contracts.frozen_groups_never_change(frozen)


def test_a_broken_method_is_printed_with_the_contract_its_reason_and_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, in this process: the method is FedAvg with a rate of 0."""
    builder = plugins.builder

    def without_rate(kind: str, name: str) -> Any:
        build = builder(kind, name)
        if kind == "models":
            return build
        return lambda problem, *, widen, rank, train: with_group("base", lr=0.0)(
            build(problem, widen=widen, rank=rank, train=train)
        )

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(plugins, "builder", without_rate)
    assert main(["check", "method", "fedavg_wide"]) == 1
    said = capsys.readouterr().out
    assert "FAILS  training changes what clients predict\n" in said
    assert "the outputs of clients 0, " in said and "often: no group has a rate above 0" in said
    assert said.count("FAILS") == 1
    assert said.endswith("method fedavg_wide: 1 contract broken\n")


def test_an_error_in_the_code_is_named_with_its_line_and_stops_what_needs_it() -> None:
    def fail() -> None:
        raise ZeroDivisionError("by hand")

    first, second = outcomes([Check("it is built", fail, needed=True), Check("it trains", lambda: None)])
    assert first.state == "fails" and first.text.startswith("ZeroDivisionError: by hand (")
    assert "test_contracts_fail.py, line " in first.text
    assert second.state == "not checked" and "it is built" in str(second)


def test_names_that_do_not_exist_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    wrong = [("method", "fedavgg", "'fedavg"), ("model", "mpl", "'mlp"), ("task", "digits_rotat", "'digits_rotate")]
    wrong += [("model", "tests/modules/plian.py:small", "tests/modules/plain.py?")]
    for kind, name, near in wrong:
        assert main(["check", kind, name]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"floral check {kind}: ") and said.count("floral check") == 1
        assert f"did you mean {near}" in said


def test_a_model_that_mixes_samples_or_ignores_its_seed_fails(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mixing(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x.flatten(1))\n"
        "        return y - y.mean(0)\n"
        "def make(shape, outputs):\n"
        "    return Mixing(shape[0], outputs)\n"
        "def good(shape, outputs):\n"
        "    return torch.nn.Linear(shape[0], outputs)\n"
    )
    states = {
        function: {
            outcome.name: outcome.state
            for outcome in outcomes(models.checks(models.keys_of(f"{tmp_path}/mine.py:{function}"), (6,), 3))
        }
        for function in ("good", "make")
    }
    assert set(states["good"].values()) == {"holds"}
    mixed = "the outputs for a sample do not depend on the rest of the batch"
    assert [name for name, state in states["make"].items() if state == "fails"][:1] == [mixed]


def test_a_module_with_functional_dropout_breaks_nothing_and_its_summary_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "drops.py").write_text(
        "from torch import nn\n"
        "class Drops(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 5)\n"
        "        self.scale = nn.Parameter(self.last.bias.detach() * 0 + 1)\n"
        "    def forward(self, x):\n"
        "        return self.last(nn.functional.dropout(self.norm(x), 0.2, self.training)) * self.scale\n"
    )
    facts = models.Facts()
    contracts = models.checks(models.keys_of(f"{tmp_path}/drops.py:Drops"), (6,), None, facts)
    built, backends, _ = (check for check in contracts if check.needed or "without adaptors" in check.name)
    assert built.run() == "samples of shape [6], 5 outputs"
    assert backends.run() == "only the backend loop can be used"
    rows = models.summary(facts)
    assert (rows["parameters"], rows["head"]) == ("52 trained, 0 frozen", "last")
    assert (rows["adaptors"], rows["no adaptor"]) == ("last", "scale") and rows["norm layers"].startswith("norm; ")
    assert rows["FLoRAL 1 %"].startswith(
        "an adaptor has 16 parameters, 31 % of the model, because its rank is at least"
    )
    assert rows["backends"].startswith("loop; not vmap and batched: the module draws random numbers by itself")
    assert "nn.Dropout layers to use all backends" in rows["backends"]


def test_a_function_that_returns_no_module_is_named_without_advice_on_shapes(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("def make(outputs):\n    pass\n")
    failed, first, second, *_ = outcomes(models.checks(models.keys_of(f"{tmp_path}/none.py:make"), None, None))
    assert failed.text == "`build` returns NoneType; return a torch.nn.Module"
    assert first.text.startswith("because this fails") and not second.text


def test_a_model_that_fits_no_shape_says_what_was_tried() -> None:
    last = list(outcomes(models.checks({"kind": "cnn", "channels": (2, 3), "hidden": 4}, (3,), None)))[1]
    assert last.state == "fails" and "[3]: " in last.text and "--shape H W 3" in last.text


@pytest.mark.parametrize(
    ("shape", "outputs", "reason", "remedy"),
    [
        ((8, 8), 3, "the module returns a tensor of shape [3, 10]", "; or check it with --outputs 10"),
        ((1, 8, 8), 10, "[1, 8, 8]: ", "not channels first; and the number of classes if it is not 10: --outputs 10"),
    ],
)
def test_the_reason_why_a_module_does_not_fit_is_shown(
    tmp_path: Path, shape: tuple[int, ...], outputs: int, reason: str, remedy: str
) -> None:
    """Ten classes where the check has three, and an image with its channels first."""
    (tmp_path / "ten.py").write_text(
        "from torch import nn\n"
        "def make(num_classes=10):\n"
        "    pool = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    return nn.Sequential(pool, nn.Linear(2, num_classes))\n"
    )
    (failed, *rest) = outcomes(models.checks(models.keys_of(f"{tmp_path}/ten.py:make"), shape, outputs))
    assert failed.state == "fails" and reason in failed.text, failed.text
    assert remedy in failed.text and ("`make` has no argument `outputs`" in failed.text) == (outputs == 3), failed.text
    assert "broadcast" not in failed.text and str(rest[0]).startswith("  not checked initial values")


def test_a_module_with_arguments_and_keyword_inputs_is_checked(tmp_path: Path) -> None:
    (tmp_path / "texts.py").write_text(
        "from torch import nn\n"
        "class Texts(nn.Module):\n"
        "    def __init__(self, outputs, words):\n"
        "        super().__init__()\n"
        "        self.words, self.out = nn.Embedding(words, 2), nn.Linear(2, outputs)\n"
        "    def forward(self, input_ids, mask):\n"
        "        return self.out((self.words(input_ids) * mask[..., None]).mean(1))\n"
    )
    name, inputs = f"{tmp_path}/texts.py:Texts", {"input_ids": "ids", "mask": "ids != 0"}
    facts = models.Facts()
    first = next(iter(models.checks(models.keys_of(name, {"words": 17}, inputs), (6,), None, facts)))
    assert first.run() == "samples of shape [6], 5 outputs"
    assert facts.model is not None and facts.model.init(Shapes(0, ""))["words.weight"].shape == (17, 2)
    lacking = next(iter(outcomes(models.checks(models.keys_of(name), (6,), None))))
    assert lacking.state == "fails" and "--arguments '{name: value}'" in lacking.text
    with pytest.raises(SystemExit):
        parser().parse_args(["check", "model", name, "--arguments", "words=17"])


def test_a_task_says_what_its_clients_have_and_which_methods_can_be_used(tmp_path: Path) -> None:
    by_name = {outcome.name: outcome for outcome in outcomes(tasks.checks("synthetic_linear", tmp_path, None))}
    assert {outcome.state for outcome in by_name.values()} == {"holds"}
    assert "not fedavg_wide: " in by_name["methods can be used for it"].text


def test_a_task_whose_loss_explodes_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = catalogue.task("synthetic_linear", {"lr": 1e6, "router_lr": 0.1})
    monkeypatch.setattr(catalogue, "task", lambda name: task)
    monkeypatch.setattr(catalogue, "variant_index", lambda: {"fedavg": "fedavg"})
    *_, trained, _ = outcomes(tasks.checks("synthetic_linear", tmp_path, None))
    assert (
        trained.state == "fails"
        and "the training loss of FedAvg" in trained.text
        and "`lr` is too high" in trained.hint
    )


def test_a_method_without_a_description_says_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "names", lambda kind: ["mine"])
    with pytest.raises(ValueError, match=r"mine\.py: this method has no description; write config/methods/mine\.yaml"):
        methods.variants_of("mine")

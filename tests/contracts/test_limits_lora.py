"""The limiting cases of the methods that average low-rank adaptors or parts of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
import torch
from federations import SHALLOW, assert_close, assert_equal_states, make_data, served, train, trained_base

from floral.config.reading import ConfigError

pytestmark = pytest.mark.usefixtures("without_recording")

EXACT = 1e-10
SEVERAL_STEPS: dict[str, Any] = {"batch": 2, "epochs": 2}


def simulate(variant, params=None, **how):
    """With the trained base of a shared LoRA method, so that all rounds train its adaptors."""
    return federations.simulate(variant, params=trained_base(variant, params), **how)


def trained(variant, rounds=3, **how):
    return train(simulate(variant, **how), rounds)


def frozen(*names):
    """A change of method: groups that are not moved by training."""
    return lambda method: replace(
        method, groups={**method.groups, **{name: replace(method.groups[name], lr=0.0) for name in names}}
    )


def without_penalty(method):
    """A change of method: what λ = 0 would be, which its file refuses."""
    return replace(method, phases=tuple(replace(phase, penalty=None) for phase in method.phases))


def as_is(method):
    return method


@pytest.mark.parametrize("model", SHALLOW)
@pytest.mark.parametrize(
    ("variant", "groups"),
    [
        ("fedit", ("adaptor",)),
        ("ffa_lora", ("B",)),
        ("dual_lora", ("shared", "private")),
    ],
)
def test_adaptors_frozen_at_zero_are_fedavg(variant, groups, model):
    ours, fedavg = simulate(variant, model=model, change=frozen(*groups)), simulate("fedavg", model=model)
    end, other = train(ours), train(fedavg)
    for group in other.values:
        assert_close(end.values[group], other.values[group], EXACT)
    torch.testing.assert_close(served(ours, end), served(fedavg, other), rtol=0, atol=EXACT)


@pytest.mark.parametrize("model", SHALLOW)
def test_fedit_is_floral_with_one_cluster_and_no_preconditioner(model):
    how = {"model": model, "clusters": 1}
    fedit, floral = simulate("fedit", **how), simulate("floral_1", switches={"preconditioner": False}, **how)
    ours, theirs = train(fedit), train(floral)
    assert_close(ours.values["base"], theirs.values["base"], EXACT)
    assert_close(ours.values["adaptor"], {key: t[0] for key, t in theirs.values["adaptors"].items()}, EXACT)
    torch.testing.assert_close(served(fedit, ours), served(floral, theirs), rtol=0, atol=EXACT)


def aggregation_error(variant: str, model: str) -> float:
    """Largest |mean(B_k A_k) - mean(B_k) mean(A_k)| of a layer after one round, means with p(k) over its clients."""
    simulation = simulate(variant, model=model, params={"convolution": "in"}, **SEVERAL_STEPS)
    state = simulation.start()
    cohort = simulation.cohort(1)
    share = torch.from_numpy(simulation.data.train.count[cohort] / simulation.data.train.count[cohort].sum())

    def adaptor(values):
        groups = ("adaptor",) if variant == "fedit" else ("A", "B")
        return {name: t for group in groups for name, t in values.get(group, state.values[group]).items()}

    def products(params):
        layers = [name.removesuffix(".A") for name in params if name.endswith(".A")]
        return {layer: params[f"{layer}.B"].flatten(1) @ params[f"{layer}.A"].flatten(1) for layer in layers}

    alone = [simulation.train_chunk(state, 1, np.array([k]), torch.ones(1)).mean.sums for k in cohort]
    each = [products(adaptor(values)) for values in alone]
    moved = [max(float(one[layer].abs().max()) for one in each) for layer in each[0]]
    assert min(moved) > 1e-5, "an adaptor was not trained"
    simulation.train(state, 1)
    averaged = products(adaptor(state.values))
    means = {layer: sum(p * one[layer] for p, one in zip(share, each, strict=True)) for layer in averaged}
    return max(float((means[layer] - averaged[layer]).abs().max()) for layer in averaged)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_only_a_frozen_factor_is_averaged_without_error(model):
    assert aggregation_error("ffa_lora", model) < 1e-12
    assert aggregation_error("fedit", model) > 1e-5


def test_the_frozen_factor_is_fedits_start_and_is_not_sent():
    ffa, fedit = simulate("ffa_lora"), simulate("fedit")
    start, other = ffa.start(), fedit.start()
    assert_close(start.values["A"] | start.values["B"], other.values["adaptor"], 0.0)
    size = sum(t.numel() for t in start.values["A"].values())
    assert fedit.costs(other).sent_down - ffa.costs(start).sent_down == size > 0
    assert fedit.costs(other).sent_up - ffa.costs(start).sent_up == size
    assert ffa.costs(start).served == fedit.costs(other).served


@pytest.mark.parametrize("model", SHALLOW)
def test_dual_lora_whose_private_adaptor_stays_at_zero_is_fedit(model):
    dual, fedit = simulate("dual_lora", model=model, change=frozen("private")), simulate("fedit", model=model)
    ours, theirs = train(dual), train(fedit)
    assert_close(ours.values["base"], theirs.values["base"], EXACT)
    assert_close(ours.values["shared"], theirs.values["adaptor"], EXACT)
    torch.testing.assert_close(served(dual, ours), served(fedit, theirs), rtol=0, atol=EXACT)


def test_dual_lora_whose_shared_adaptor_stays_at_zero_is_local_adaptor():
    """With the private adaptor's start, which is not Local Adaptor's own, and without its preconditioner."""
    dual = simulate("dual_lora", change=frozen("shared"))
    start = {name: t[:, None] for name, t in dual.start().values["private"].items()}

    def from_there(method):
        return replace(
            method, groups={**method.groups, "adaptor": replace(method.groups["adaptor"], init=lambda: start)}
        )

    local = simulate("local_adaptor", change=from_there, switches={"preconditioner": False})
    ours, theirs = train(dual), train(local)
    assert_close(ours.values["base"], theirs.values["base"], EXACT)
    assert_close(ours.values["private"], {name: t[:, 0] for name, t in theirs.values["adaptor"].items()}, EXACT)


@pytest.mark.parametrize("model", SHALLOW)
def test_peradas_shared_part_does_not_depend_on_the_penalty(model):
    pulled, free = (trained("perada", model=model, change=change).values for change in (as_is, without_penalty))
    for group in set(pulled) - {"private", "private_statistics"}:
        assert_close(pulled[group], free[group], EXACT)


def test_peradas_private_part_without_a_penalty_is_trained_as_the_shared_one_alone():
    """In one round of a base that is held, from the same start and on the same batches."""
    how = {"data": make_data((13,), clusters=1), "participation": 1.0, "switches": {"batches": "fixed"}}

    def change(method):
        return without_penalty(frozen("base")(method))

    values = trained("perada", rounds=3, change=change, **how, **SEVERAL_STEPS).values
    assert_close({name: t[0] for name, t in values["private"].items()}, values["shared"], EXACT)
    assert any(t.any() for name, t in values["shared"].items() if name.startswith("out."))


def test_perada_trains_norm_layers_and_the_last_layer_as_a_whole():
    values = simulate("perada", model="batch_norm").start().values
    layers = {"out.weight", "out.bias", "norm.weight", "norm.bias"}
    assert {n for n in values["private"] if not n.endswith((".A", ".B"))} == layers | {"hidden.bias"}
    assert not any(values["private"][name].any() for name in layers)


def test_perada_trains_head_and_norm_layers_of_a_trained_base_once():
    """On one batch they make FedAvg's step: base and change together do not make two."""
    how = {"model": "batch_norm", "data": make_data((9,), clusters=1), "participation": 1.0, "batch": 64}
    ours, fedavg = (trained(variant, rounds=1, **how).values for variant in ("perada", "fedavg"))
    base = {**ours["base"], **ours.get("untrained", {})}
    layers = [name for name in base if not name.startswith("hidden.")]
    assert len(layers) == 4
    assert_close(
        {name: base[name] + ours["shared"][name] for name in layers},
        {name: fedavg["base"][name] for name in layers},
        EXACT,
    )


def test_peradas_penalty_pulls_towards_the_received_adaptor():
    """Away from the centre w, one step goes -2·lr·λ·(v - w) beyond that of the loss alone."""
    lam, lr = 0.5, 0.1

    def one_step(change):
        simulation = simulate("perada", params={"lam": lam}, change=change, lr=lr, batch=64)
        state = simulation.start()
        for t in state.values["shared"].values():
            t.add_(1.0)
        before, centre = ({name: t.clone() for name, t in state.values[g].items()} for g in ("private", "shared"))
        simulation.train(state, 1)
        return simulation.cohort(1), before, centre, state.values["private"]

    cohort, before, centre, pulled = one_step(as_is)
    _, _, _, free = one_step(without_penalty)
    for name in before:
        expected = free[name][cohort] - 2 * lr * lam * (before[name][cohort] - centre[name])
        torch.testing.assert_close(pulled[name][cohort], expected, rtol=0, atol=EXACT)


def test_fedsas_absent_clients_keep_factor_and_classifier_and_get_the_new_shared_factor():
    simulation = simulate("fedsa_lora")
    start = simulation.start()
    end = train(simulation, 1)
    present = set(simulation.cohort(1).tolist())
    absent = sorted(set(range(simulation.data.clients)) - present)
    assert absent
    for group in ("B", "head"):
        for name, t in end.values[group].items():
            assert torch.equal(t[absent], start.values[group][name][absent])
            assert not any(torch.equal(t[k], start.values[group][name][k]) for k in present)
    again = train(simulation, 2)
    assert not torch.equal(again.values["A"]["hidden.A"], start.values["A"]["hidden.A"])


def test_fedsa_adapts_all_but_the_classifier_and_sends_neither_factor_b_nor_classifier():
    simulation = simulate("fedsa_lora", model="cnn")
    state = simulation.start()
    assert {name.split(".")[0] for name in state.values["A"]} == {"conv1", "conv2", "hidden"}
    assert set(state.values["head"]) == {"out.weight", "out.bias"}
    sent = sum(t.numel() for group in ("base", "A") for t in state.values[group].values())
    costs = simulation.costs(state)
    assert costs.sent_down == costs.sent_up == sent
    kept = sum(t[0].numel() for group in ("B", "head") for t in state.values[group].values())
    assert costs.kept_private == kept
    assert costs.served == sent + kept


def test_fedsa_without_a_private_part_is_fedit_below_the_classifier():
    """One client: what is private and what is shared is the same."""
    how = {"data": make_data((13,), clusters=1), "participation": 1.0, "epochs": 2}
    ours = trained("fedsa_lora", **how).values

    def no_adaptor_on_the_classifier(method):
        def predict(view, x, noise, mask):
            still = {n: torch.zeros_like(t) if n.startswith("out.") else t for n, t in view["adaptor"].items()}
            return method.predict({**view, "adaptor": still}, x, noise, mask)

        return replace(method, predict=predict)

    fedit = trained("fedit", change=no_adaptor_on_the_classifier, **how).values
    whole = ours["base"] | {name: t[0] for name, t in ours["head"].items()}
    assert_close(whole, fedit["base"], EXACT)
    adaptor = ours["A"] | {name: t[0] for name, t in ours["B"].items()}
    assert_close(adaptor, {n: t for n, t in fedit["adaptor"].items() if not n.startswith("out.")}, EXACT)


def test_fedsa_with_its_adaptor_frozen_at_zero_is_fedper():
    ours, fedper = trained("fedsa_lora", change=frozen("A", "B")).values, trained("fedper").values
    for group in ("base", "head"):
        assert_close(ours[group], fedper[group], EXACT)


def test_fedsa_refuses_a_model_that_is_its_classifier_alone():
    with pytest.raises(ConfigError, match="no body before a last linear layer"):
        simulate("fedsa_lora", model="linear")


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("variant", ["fedit", "ffa_lora", "fedsa_lora", "dual_lora", "perada"])
def test_backends_agree_whichever_way_the_adaptors_are_applied(variant, model, batch):
    """At the tiny sizes of the contracts the cheaper way is to merge; on a task's own sizes it often is not."""
    how = {"model": model, "batch": batch, "params": {"application": "unmerged"}}
    loop, merged = trained(variant, **how), trained(variant, **{**how, "params": {"application": "merged"}})
    assert_equal_states(merged, loop, EXACT)
    for backend in ("vmap", "batched"):
        assert_equal_states(trained(variant, backend=backend, chunk=3, **how), loop, EXACT)

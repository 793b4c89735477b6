"""Limits of methods that aggregate adaptors otherwise than factor by factor, and of bases that freeze."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
import torch
from federations import SIZES, assert_close, assert_equal_states, make_data, served, train, trained_base

from floral.adaptors.aggregation import unflatten
from floral.config import catalogue
from floral.config.reading import ConfigError

pytestmark = pytest.mark.usefixtures("without_recording")

EXACT = 1e-10
SEVERAL_STEPS: dict[str, Any] = {"batch": 2, "epochs": 2}
SHARED = [name for name in catalogue.names("methods") if catalogue.method_file(name).family == "Shared LoRA"]
INTO_THE_BASE = ("fedex_lora", "flora_stacking")
"""Their servers change a frozen base: that is what they do."""
ALONE: dict[str, Any] = {"data": make_data((13,), clusters=1), "participation": 1.0}


def simulate(variant, params=None, **how):
    """With the trained base of a shared LoRA method, so that all rounds train its adaptors."""
    return federations.simulate(variant, params=trained_base(variant, params), **how)


def trained(variant, rounds=3, **how):
    return train(simulate(variant, **how), rounds)


def frozen_base(warmup: float) -> dict[str, Any]:
    return {"base": "warmup_freeze", "warmup": warmup}


# ------------------------------------------------------------------------------------------- a base that freezes


@pytest.mark.parametrize("variant", SHARED)
def test_a_warm_up_of_all_rounds_is_fedavg(variant):
    """Of FedSA-LoRA, whose classifier is private, it is FedPer."""
    ours = simulate(variant, params=frozen_base(1.0))
    plain = simulate("fedper" if variant == "fedsa_lora" else "fedavg")
    torch.testing.assert_close(served(ours, train(ours)), served(plain, train(plain)), rtol=0, atol=EXACT)


@pytest.mark.parametrize("variant", SHARED)
def test_after_the_warm_up_all_but_the_base_changes(variant):
    simulation = simulate(variant, params=frozen_base(0.5))
    state = train(simulation, 2)
    before = {group: {name: t.clone() for name, t in params.items()} for group, params in state.values.items()}
    for round in (3, 4):
        simulation.train(state, round)
    same = {
        group: all(torch.equal(t, before[group][n]) for n, t in params.items())
        for group, params in state.values.items()
    }
    trained_groups = {name for phase in simulation.phases(3) + simulation.phases(4) for name in phase.train}
    unchanged = {group for group in trained_groups if same[group]}
    assert trained_groups and unchanged == ({"B"} if variant == "flora_stacking" else set())  # B is 0 after each round
    assert same["base"] == (variant not in INTO_THE_BASE)
    assert {name for phase in simulation.phases(1) for name in phase.train} >= {"base"}


@pytest.mark.parametrize("variant", SHARED)
def test_on_a_frozen_base_head_and_adaptors_train_in_every_round(variant):
    """A task with `base: frozen` leaves no base to warm up: the plain names equal those with a trained base."""
    ours, joint = (federations.simulate(variant, params=params, base="frozen") for params in ({}, {"base": "joint"}))
    assert_equal_states(train(ours, 2), train(joint, 2), 0.0)


def test_a_round_costs_what_it_trains_and_what_changed_before_it():
    simulation = federations.simulate("fedit")
    state = simulation.start()
    base, adaptor = (sum(t.numel() for t in state.values[group].values()) for group in ("base", "adaptor"))
    costs = [simulation.costs_of(state, round) for round in (1, 2, 3, 4)]
    assert [cost.sent_up for cost in costs] == [base, base, adaptor, adaptor]
    assert [cost.sent_down for cost in costs] == [base, base, base + adaptor, adaptor]
    assert [cost.trainable_per_client for cost in costs] == [base, base, adaptor, adaptor]


# ------------------------------------------------------------------------------------------- exact aggregation


def products(params, groups=("adaptor",)):
    """B A of every layer whose adaptor is one matrix product."""
    adaptor = {name: t for group in groups if group in params for name, t in params[group].items()}
    layers = [name.removesuffix(".A") for name in adaptor if name.endswith(".A")]
    return {layer: adaptor[f"{layer}.B"].flatten(1) @ adaptor[f"{layer}.A"].flatten(1) for layer in layers}


def first(adaptor, rank):
    """The first components of an adaptor: rows of A and columns of B."""
    return {
        name: t if name.endswith(".bias") else t[:rank] if name.endswith(".A") else t[:, :rank]
        for name, t in adaptor.items()
    }


def alone(simulation, state, round):
    """p(k) [M] of a round, and what each of its clients has trained."""
    cohort, share = simulation.pools(round)
    results = [simulation.train_chunk(state, round, np.array([k]), torch.ones(1)) for k in cohort]
    received = {group: dict(params) for group, params in state.values.items()}
    own = [{group: {name: t[0] for name, t in params.items()} for group, params in r.values.items()} for r in results]
    return share, [{**received, **r.mean.sums, **private} for r, private in zip(results, own, strict=True)]


@pytest.mark.parametrize("base", ["joint", "warmup_freeze"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("variant", [*INTO_THE_BASE, "fedit"])
def test_the_served_layers_are_the_mean_of_the_clients_layers(variant, model, base):
    """W + B A after the server's step against Σ_k p(k) (W_k + B_k A_k), over several rounds; FedIT's are not."""
    params = {"convolution": "in", "base": base, "warmup": 0.25}
    simulation = simulate(variant, model=model, params=params, **SEVERAL_STEPS)
    state, errors = train(simulation, 1), []
    for round in (2, 3):
        share, each = alone(simulation, state, round)
        simulation.train(state, round)
        groups = ("A", "B") if variant == "flora_stacking" else ("adaptor",)
        for layer, product in products(each[0], groups).items():
            name = f"{layer}.weight"
            means = sum(
                p * (one["base"][name].flatten(1) + products(one, groups)[layer])
                for p, one in zip(share, each, strict=True)
            )
            product = 0 if variant == "flora_stacking" else products(state.values)[layer]  # its clients predict with W
            errors.append(float((state.values["base"][name].flatten(1) + product - means).abs().max()))
    assert max(errors) > 1e-6 if variant == "fedit" else max(errors) < 1e-12


@pytest.mark.parametrize("variant", INTO_THE_BASE)
def test_on_a_frozen_base_the_served_layers_are_the_mean_too(variant):
    """The server adds to the frozen weights, which no client trains; the head is trained and averaged."""
    simulation = federations.simulate(variant, base="frozen", **SEVERAL_STEPS)
    state = train(simulation, 1)
    start = simulation.start().values["weights"]
    share, each = alone(simulation, state, 2)
    before = {name: t.clone() for name, t in state.values["weights"].items()}
    simulation.train(state, 2)
    groups = ("A", "B") if variant == "flora_stacking" else ("adaptor",)
    for layer, product in products(each[0], groups).items():
        if f"{layer}.weight" not in before:
            continue  # the head, which is trained
        product = 0 if variant == "flora_stacking" else products(state.values)[layer]
        mean = before[f"{layer}.weight"].flatten(1) + sum(
            p * products(one, groups)[layer] for p, one in zip(share, each, strict=True)
        )
        served_now = state.values["weights"][f"{layer}.weight"].flatten(1) + product
        torch.testing.assert_close(served_now, mean, rtol=0, atol=1e-12)
        assert not torch.equal(start[f"{layer}.weight"], before[f"{layer}.weight"])
    assert set(state.values["base"]).isdisjoint(before)


def test_stacking_begins_anew_with_another_a_of_each_client():
    simulation = simulate("flora_stacking")
    start, end = simulation.start(), train(simulation, 1)
    present = set(simulation.cohort(1).tolist())
    for name, t in end.values["A"].items():
        assert [k for k in range(len(t)) if not torch.equal(t[k], start.values["A"][name][k])] == sorted(present)
        assert len(torch.cat([t, start.values["A"][name]]).flatten(1).unique(dim=0)) == len(t) + len(present)
    assert not any(t.any() for t in end.values["B"].values())


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("least", ["rank", 1])
def test_flexlora_serves_the_best_product_of_its_rank(model, least):
    """With unequal ranks, a client's product has the first components only, as many as its rank."""
    simulation = simulate("flexlora", model=model, params={"rank": 2, "least": least}, **SEVERAL_STEPS)
    state = train(simulation, 1)
    share, each = alone(simulation, state, 2)
    simulation.train(state, 2)
    truncated = 0.0
    if least == 1:
        ranks = [int(one["rank"]["components"]) for one in each]
        assert {1, 2} == set(ranks)
        each = [{"adaptor": first(one["adaptor"], rank)} for one, rank in zip(each, ranks, strict=True)]
    for layer, product in products(state.values).items():
        mean = sum(p * products(one)[layer] for p, one in zip(share, each, strict=True))
        left, size, right = torch.linalg.svd(mean, full_matrices=False)
        torch.testing.assert_close(product, left[:, :2] * size[:2] @ right[:2], rtol=0, atol=EXACT)
        truncated += float(size[2:].sum())
    assert truncated > 1e-6


def test_flexlora_diverges_as_others_do():
    """What has no decomposition is NaN and not an error: the run is reported as diverged."""
    state = train(simulate("flexlora", lr=1e20, dtype=torch.float32, **SEVERAL_STEPS), 3)
    assert all(t.isnan().all() for t in state.values["adaptor"].values())


@pytest.mark.parametrize("variant", ["flexlora", "fedex_lora"])
def test_with_one_client_a_round_serves_what_fedit_does(variant):
    ours, fedit = simulate(variant, **ALONE), simulate("fedit", **ALONE)
    torch.testing.assert_close(served(ours, train(ours, 1)), served(fedit, train(fedit, 1)), rtol=0, atol=EXACT)


def test_flexlora_with_a_least_rank_of_all_ranks_is_that_with_equal_ranks():
    ours, equal = (simulate("flexlora", params={"rank": 2, "least": least}) for least in (2, "rank"))
    torch.testing.assert_close(served(ours, train(ours)), served(equal, train(equal)), rtol=0, atol=EXACT)


def test_flexlora_refuses_products_of_two_convolutions():
    with pytest.raises(ConfigError, match="set `convolution: in`"):
        simulate("flexlora", model="cnn", params={"convolution": "balanced_2d"})


def test_stacking_with_adaptors_at_zero_is_fedavg():
    def still(method):
        still = {name: replace(method.groups[name], lr=0.0) for name in ("A", "B")}
        return replace(method, groups={**method.groups, **still})

    assert_close(trained("flora_stacking", change=still).values["base"], trained("fedavg").values["base"], EXACT)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_rolora_averages_without_error_and_sends_one_factor_a_round(model):
    simulation = simulate("rolora", model=model, params={"convolution": "in"}, **SEVERAL_STEPS)
    state = simulation.start()
    size = {group: sum(t.numel() for t in state.values[group].values()) for group in ("base", "A", "B")}
    for round, factor in ((1, "B"), (2, "A"), (3, "B")):
        share, each = alone(simulation, state, round)
        assert simulation.costs_of(state, round).sent_up == size["base"] + size[factor]
        simulation.train(state, round)
        for layer, product in products(state.values, ("A", "B")).items():
            means = sum(p * products(one, ("A", "B"))[layer] for p, one in zip(share, each, strict=True))
            torch.testing.assert_close(product, means, rtol=0, atol=1e-12)


def test_rolora_begins_as_ffa_lora():
    assert_equal_states(trained("rolora", 1), trained("ffa_lora", 1), EXACT)


# ------------------------------------------------------------------------------------------- HetLoRA

EQUAL = {"rank": 3, "least": 3, "gamma": 1.0}


@pytest.mark.parametrize("model", ["mlp", "cnn", "batch_norm"])
def test_hetlora_with_equal_ranks_and_no_pruning_is_fedit(model):
    ours = trained("hetlora", model=model, params={**EQUAL, "weighting": "rows"}).values
    fedit = trained("fedit", model=model, params={"rank": 3}).values
    for group, params in fedit.items():
        assert_close(ours[group], params, EXACT)


@pytest.mark.parametrize("convolution", ["in", "out", "balanced_2d"])
def test_hetlora_weighs_with_the_norms_of_the_products(convolution):
    """Against the composed kernels of each client, of three components."""
    params = {**EQUAL, "weighting": "norm", "convolution": convolution}
    simulation = simulate("hetlora", model="cnn", params=params, **SEVERAL_STEPS)
    state = simulation.start()
    _, each = alone(simulation, state, 1)
    simulation.train(state, 1)

    def squared(adaptor, layer):
        a, b = adaptor[f"{layer}.A"], adaptor[f"{layer}.B"]
        composed = b @ a if a.dim() == 2 else (b[:, :, None] * a[None]).sum(1)
        return composed.square().sum()

    layers = {name.split(".")[0] for name in state.values["adaptor"]}
    norms = torch.stack([sum(squared(one["adaptor"], layer) for layer in layers).sqrt() for one in each])
    assert norms.min() > 0 and norms.max() / norms.min() > 1.1
    for name, t in state.values["adaptor"].items():
        mean = sum(w * one["adaptor"][name] for w, one in zip(norms / norms.sum(), each, strict=True))
        torch.testing.assert_close(t, mean, rtol=0, atol=EXACT)


def test_hetloras_clients_move_and_send_their_first_components_alone():
    simulation = simulate("hetlora", params={"rank": 4})
    state = simulation.start()
    ranks = state.values["rank"]["components"].clone()
    assert ranks.min() >= 1 and ranks.max() <= 4 and ranks.unique().numel() > 1
    for k in simulation.cohort(1):
        sent = simulation.train_chunk(state, 1, np.array([k]), torch.ones(1)).client_vectors
        for name, (t,) in unflatten(sent, state.values["adaptor"]).items():
            if not name.endswith(".bias"):
                components = t if name.endswith(".A") else t.mT
                assert not components[int(ranks[k]) :].any()
                assert components[: int(ranks[k])].any()


def test_hetlora_leaves_its_adaptor_and_ranks_alone_while_it_warms_up():
    """Else the padding would wear A away before anyone trains it."""
    simulation = federations.simulate("hetlora")
    start, state = simulation.start().values, train(simulation, 2).values
    for group in ("adaptor", "rank"):
        assert all(torch.equal(tensor, state[group][name]) for name, tensor in start[group].items())


def test_hetlora_prunes_who_lost_the_last_components_and_nobody_else():
    """A strong penalty shrinks them once B has left zero; a rank never grows, nor falls below the least."""
    simulation = simulate("hetlora", params={"rank": 4, "least": 2, "lam": 3.0}, rounds=12)
    state = simulation.start()
    start = state.values["rank"]["components"].clone()
    for round in range(1, 13):
        before = state.values["rank"]["components"].clone()
        simulation.train(state, round)
        after = state.values["rank"]["components"]
        assert bool((after <= before).all()) and bool((after >= 2).all())
        absent = sorted(set(range(simulation.data.clients)) - set(simulation.cohort(round).tolist()))
        assert torch.equal(after[absent], before[absent])
    assert bool((after < start).any())


# ------------------------------------------------------------------------------------------- FedALT


def test_fedalts_rest_of_the_world_is_the_mean_of_the_others_adaptors():
    simulation = simulate("fedalt")
    state = train(simulation, 2)
    own = {name: t.clone() for name, t in state.values["own"].items()}
    simulation.train(state, 3)
    for k in simulation.cohort(3):
        others = [j for j in range(simulation.data.clients) if j != k]
        for name, t in own.items():
            torch.testing.assert_close(state.values["rest"][name][k], t[others].mean(0), rtol=0, atol=EXACT)
            assert not torch.equal(state.values["own"][name][k], t[k])


def test_fedalt_with_adaptors_that_stay_at_zero_is_fedavg():
    def still(method):
        return replace(method, groups={**method.groups, "own": replace(method.groups["own"], lr=0.0)})

    ours, fedavg = simulate("fedalt", change=still), simulate("fedavg")
    torch.testing.assert_close(served(ours, train(ours)), served(fedavg, train(fedavg)), rtol=0, atol=EXACT)


def test_fedalts_gate_mixes_every_sample_by_itself():
    """Far from zero, a gate gives each sample one adaptor or the other."""
    simulation = simulate("fedalt", **SEVERAL_STEPS)
    state = train(simulation, 3)
    client = int(simulation.cohort(3)[0])
    seen = {
        group: {
            name: t[client] if simulation.method.groups[group].scope.value == "private" else t for name, t in p.items()
        }
        for group, p in state.values.items()
    }
    x = simulation.data.test.decode(simulation.data.test.x[:6])

    def output(**mixer):
        return simulation.method.predict({**seen, "mixer": {**seen["mixer"], **mixer}}, x, None, None)[0]

    direction = torch.zeros(2, 16, dtype=x.dtype)
    direction[0, 0] = 1.0
    only_own, only_rest = (
        output(hidden=sign * 1e6 * torch.stack([torch.ones(16), -torch.ones(16)]).to(x.dtype)) for sign in (1, -1)
    )
    assert not torch.allclose(only_own, only_rest)
    feature = x.flatten(1)[:, 0]
    threshold = output(hidden=1e6 * direction.to(x.dtype))
    positive = feature > 0
    assert positive.any()
    torch.testing.assert_close(threshold[positive], only_own[positive], rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------------- pFedLoRA


def test_pfedlora_without_the_adapters_loss_is_local():
    ours = trained("pfedlora", change=lambda method: replace(method, loss=None)).values
    local = trained("local").values
    assert_close({n: ours["base"][n] + t for n, t in ours["personal"].items()}, local["base"], EXACT)


def test_pfedloras_adapter_learns_beside_models_that_are_held():
    """A round whose first phase moves nothing: only the adapter changes, by the gradient of its own path."""

    def still(method):
        return replace(method, groups={**method.groups, "personal": replace(method.groups["personal"], lr=0.0)})

    simulation = simulate("pfedlora", change=still, batch=64, lr=0.1)
    state = simulation.start()
    x_of = simulation.held(simulation.cohort(1))
    share = simulation.pools(1)[1]
    start, base = ({n: t.clone() for n, t in state.values[g].items()} for g in ("adapter", "base"))
    simulation.train(state, 1)
    assert not any(t.any() for t in state.values["personal"].values())
    expected = torch.zeros_like(start["bias"])
    for x, y, mask, p in zip(x_of.x, x_of.y, x_of.mask, share, strict=True):
        hidden = torch.relu(x[mask].flatten(1) @ base["hidden.weight"].T + base["hidden.bias"])
        outputs = hidden @ (start["B"] @ start["A"]).T + start["bias"]
        error = torch.softmax(outputs, -1) - torch.nn.functional.one_hot(y[mask], outputs.shape[1])
        expected += p * (start["bias"] - 0.1 * error.mean(0))
    torch.testing.assert_close(state.values["adapter"]["bias"], expected, rtol=0, atol=EXACT)


# ------------------------------------------------------------------------------------------- FLoRAL's factors

PAIRS = [
    ("ffa", "ffa_lora"),
    ("rolora", "rolora"),
    ("fedex", "fedex_lora"),
    ("flexlora", "flexlora"),
]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize(("aggregation", "method"), PAIRS)
def test_floral_with_one_cluster_and_no_preconditioner_is_the_method_of_one_adaptor(aggregation, method, model):
    how = {"model": model, "clusters": 1, **SEVERAL_STEPS}
    floral = simulate(
        f"floral_1_{aggregation}", params={"convolution": "in"}, switches={"preconditioner": False}, **how
    )
    ours = simulate(method, params={"convolution": "in"}, **how)
    torch.testing.assert_close(served(floral, train(floral)), served(ours, train(ours)), rtol=0, atol=EXACT)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_round_of_stacking_with_one_cluster_is_flora_if_its_clients_start_with_one_a(model):
    """FLoRAL's clients have one A per cluster. FLoRA's have one each."""
    how = {"model": model, "clusters": 1, "params": {"convolution": "in"}, **SEVERAL_STEPS}
    floral = simulate("floral_1_stacking", switches={"preconditioner": False}, **how)
    start = {n: t.expand(len(SIZES), *t.shape[1:]) for n, t in floral.start().values["adaptors"].items() if ".A" in n}

    def one_a(method):
        return replace(method, groups={**method.groups, "A": replace(method.groups["A"], init=lambda: start)})

    ours = simulate("flora_stacking", change=one_a, **how)
    torch.testing.assert_close(served(floral, train(floral, 1)), served(ours, train(ours, 1)), rtol=0, atol=EXACT)


@pytest.mark.parametrize("router", ["learned", "optimal"])
@pytest.mark.parametrize("aggregation", ["average", "ffa", "rolora", "fedex", "stacking"])
def test_a_clusters_products_are_averaged_without_error(aggregation, router):
    """Δ_c + B_c A_c after a round against Σ_k p(k|c) (Δ_c + B_kc A_kc), preconditioned; averaged factors miss it."""
    params = {"rank": 2, "router": router, "aggregation": aggregation}
    simulation = simulate("floral_1", params=params, **SEVERAL_STEPS)
    method, state, errors = simulation.method, train(simulation, 1), []
    for round in (2, 3):
        cohort, share = simulation.pools(round)
        means, log_weights = [], []
        for k in cohort:
            result = simulation.train_chunk(state, round, np.array([k]), torch.ones(1))
            values, _ = result.mean.result("keep", method)
            means.append({**state.values, **values})
            if method.routing.cluster_of_client is None:
                log_weights.append(torch.log_softmax(result.values["router"]["logits"][0], -1))
            else:
                member = torch.nn.functional.one_hot(method.routing.cluster_of_client[k], 2).double()
                log_weights.append(member.log())
        weight = torch.softmax(share.log()[:, None] + torch.stack(log_weights), 0)
        kept = {n: t.clone() for n, t in state.values.get("residual", {}).items()}
        simulation.train(state, round)
        groups = ("adaptors", "A", "B")
        for c in range(2):

            def cluster(values, c=c, groups=groups):
                return {g: {n: t[c] for n, t in values[g].items()} for g in groups if g in values}

            made = products(cluster(state.values), groups)
            for layer, product in made.items():
                name = f"{layer}.weight"
                missed = (state.values["residual"][name][c] - kept[name][c]) if kept else 0.0
                expected = sum(
                    w * products(cluster(one), groups)[layer] for w, one in zip(weight[:, c], means, strict=True)
                )
                errors.append(float((product + missed - expected).abs().max()))
    assert max(errors) > 1e-7 if aggregation == "average" else max(errors) < 1e-12


@pytest.mark.parametrize(("backend", "chunk"), [("vmap", 3), ("batched", 2)])
@pytest.mark.parametrize("aggregation", ["ffa", "rolora", "fedex", "flexlora", "stacking"])
def test_backends_agree_for_a_given_cluster(aggregation, backend, chunk):
    """The preconditioner of one factor reads the other, of the client's own cluster."""
    how = {"params": {"rank": 2, "router": "optimal", "aggregation": aggregation}, "clusters": 3, **SEVERAL_STEPS}
    ours = trained("floral_1", backend=backend, chunk=chunk, **how)
    assert_equal_states(ours, trained("floral_1", **how), EXACT)


def test_a_frozen_factors_preconditioner_is_that_of_both():
    """In the first round from B = 0 the gradient of A is zero, so that one step is that of FLoRAL."""
    ffa, floral = (simulate(variant, batch=64) for variant in ("floral_1_ffa", "floral_1"))
    ours, both = train(ffa, 1).values, train(floral, 1).values["adaptors"]
    assert_close(ours["A"] | ours["B"], both, EXACT)


def test_half_of_floral_is_not_sent_when_a_is_frozen():
    ffa, floral = simulate("floral_1_ffa"), simulate("floral_1")
    start = ffa.start()
    size = sum(t.numel() for t in start.values["A"].values())
    assert floral.costs(floral.start()).sent_up - ffa.costs(start).sent_up == size > 0

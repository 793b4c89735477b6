"""The limiting cases of the global and personalised methods: what each one is when its difference is taken away."""

from __future__ import annotations

from dataclasses import replace

import federations
import pytest
import torch
from federations import DROPPING, SHALLOW, SIZES, assert_close, buildable, make_data, simulate, train, trained

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.core.spec import Scope

pytestmark = pytest.mark.usefixtures("without_recording")

EXACT = 1e-12
IN_ORDER = {"switches": {"batches": "fixed"}}
"""Every epoch has the same batches, so that a second phase sees those that a first one would."""
HEADED = [model for model in SHALLOW if buildable("fedper", model)]
NO_DRAWS = [model for model in SHALLOW if model not in DROPPING]
"""Without dropout, whose masks differ from one phase to the next."""


def with_groups(names, **values):
    """A change of method: some groups with other values."""
    return lambda method: replace(
        method, groups={name: replace(g, **values) if name in names else g for name, g in method.groups.items()}
    )


def shared(*names):
    """A change of method: PRIVATE groups that all clients share, from the common start."""

    def common(group):
        return replace(group, scope=Scope.SHARED, init=lambda: {key: t[0] for key, t in group.init().items()})

    return lambda method: replace(
        method, groups={name: common(g) if name in names else g for name, g in method.groups.items()}
    )


def private(clients, *names):
    """A change of method: SHARED groups of which every client has its own, from the common start."""

    def own(group):
        start = group.init
        return replace(
            group,
            scope=Scope.PRIVATE,
            init=lambda: {key: t.expand(clients, *t.shape) for key, t in start().items()},
        )

    return lambda method: replace(
        method, groups={name: own(g) if name in names else g for name, g in method.groups.items()}
    )


def merged(values, *names):
    """The parameters of several groups as those of one model."""
    return {key: tensor for name in names if name in values for key, tensor in values[name].items()}


# ---------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("variant", "parameter"),
    [
        ("fedprox", "mu"),
        ("ditto", "lam"),
        ("apfl", "alpha"),
        ("pfedme", "lam"),
        ("pfedme", "inner_steps"),
        ("mean_regularised", "lam"),
        ("fedrep", "head_epochs"),
    ],
)
def test_zero_would_disable_the_method_and_is_refused(variant, parameter):
    kind = type(catalogue.variant(variant).params[parameter])
    with pytest.raises(ConfigError, match=f"{parameter}: 0.* is out of range"):
        catalogue.variant(variant, {parameter: kind(0)})


# ------------------------------------------------------------------------------------------ all parameters


@pytest.mark.parametrize("variant", ["fedavg", "centralised_cluster"])
def test_on_a_frozen_base_all_parameters_can_be_trained(variant):
    """`_full` does on a frozen base what the method does on a trained one; the plain method trains the head alone."""
    full, plain = trained(f"{variant}_full", base="frozen"), trained(variant)
    assert_close(full.tensors(), plain.tensors(), 0.0)
    assert trained(variant, base="frozen").values["base"].keys() < plain.values["base"].keys()


# ------------------------------------------------------------------------------------------------- FedProx


@pytest.mark.parametrize("model", SHALLOW)
def test_fedprox_without_a_penalty_is_fedavg(unbounded, model):
    prox, fedavg = trained("fedprox", model=model, params={"mu": 0.0}), trained("fedavg", model=model)
    assert_close(prox.tensors(), fedavg.tensors(), EXACT)


def test_fedprox_of_one_step_a_round_is_fedavg_and_of_more_is_not():
    for batch, equal in ((64, True), (4, False)):
        prox, fedavg = trained("fedprox", batch=batch).values["base"], trained("fedavg", batch=batch).values["base"]
        assert all(torch.allclose(prox[key], fedavg[key], rtol=0, atol=EXACT) for key in prox) == equal


def test_fedprox_keeps_clients_nearer_to_what_they_received_the_larger_mu():
    start = simulate("fedavg").start().values["base"]
    gone = [
        sum(float((t - start[key]).square().sum()) for key, t in trained("fedprox", 1, **how).values["base"].items())
        for how in ({"params": {"mu": mu}, "epochs": 5} for mu in (0.01, 0.5, 5.0))
    ]
    assert gone[0] > 1.1 * gone[1] > 1.1 * gone[2]


# --------------------------------------------------------------------------------------------------- Ditto


@pytest.mark.parametrize("model", SHALLOW)
def test_dittos_shared_model_is_fedavg(model):
    """Whatever lam: its own phase comes first and has a loss of its own."""
    ditto, fedavg = (trained(v, model=model).values for v in ("ditto", "fedavg"))
    for group in fedavg:
        assert_close(ditto[group], fedavg[group], EXACT)


@pytest.mark.parametrize("model", NO_DRAWS)
def test_ditto_without_a_penalty_trains_local_models(unbounded, model):
    ditto = trained("ditto", model=model, params={"lam": 0.0}, **IN_ORDER).values
    local = trained("local", model=model, **IN_ORDER).values
    assert_close(ditto["personal"], local["base"], EXACT)
    if "statistics" in local:
        assert_close(ditto["personal_statistics"], local["statistics"], EXACT)


@pytest.mark.parametrize(
    "how", [{"backend": "loop"}, {"backend": "vmap", "chunk": 3}, {"backend": "batched", "chunk": 3}]
)
def test_dittos_centre_is_the_model_that_was_received(how):
    """Round 2 of two steps, by hand: the shared model has already been trained when the own one begins."""
    simulation = simulate("ditto", batch=64, epochs=2, participation=1.0, params={"lam": 0.7}, **IN_ORDER, **how)
    state = train(simulation, 1)
    received, own = state.values["base"], state.values["personal"]
    k, rows = 2, simulation.data.train
    x, y = rows.gather(torch.from_numpy(rows.index[k, : SIZES[k]]))
    v = {key: t[k].clone() for key, t in own.items()}
    centre = {key: t.clone() for key, t in received.items()}
    for _ in range(2):
        leaves = {key: t.requires_grad_() for key, t in v.items()}
        outputs, _ = simulation.method.predict({"personal": leaves}, x, {}, torch.ones(len(x)))
        loss = torch.nn.functional.cross_entropy(outputs, y)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        v = {
            key: (t - 0.1 * (g + 0.7 * (t - centre[key]))).detach()
            for (key, t), g in zip(leaves.items(), slopes, strict=True)
        }
    simulation.train(state, 2)
    assert_close({key: t[k] for key, t in state.values["personal"].items()}, v, 1e-10)


def test_ditto_costs_twice_the_passes_of_fedavg_and_sends_as_much():
    passes, sent = {}, {}
    for variant in ("fedavg", "ditto"):
        simulation = simulate(variant)
        state = simulation.start()
        costs = simulation.costs(state)
        _, samples = simulation.train(state, 1)
        passes[variant], sent[variant] = samples * costs.passes_per_sample, costs.bytes_per_client
    assert passes["ditto"] == 2 * passes["fedavg"]
    assert sent["ditto"] == sent["fedavg"]


# ------------------------------------------------------------------------------------------ FedPer, FedRep


@pytest.mark.parametrize("model", HEADED)
def test_fedper_with_a_shared_head_is_fedavg(model):
    fedper = trained("fedper", model=model, change=shared("head")).values
    fedavg = trained("fedavg", model=model).values
    assert_close(merged(fedper, "base", "head"), fedavg["base"], EXACT)


@pytest.mark.parametrize("model", HEADED)
def test_fedper_with_a_private_body_is_local(model):
    fedper = trained("fedper", model=model, change=private(len(SIZES), "base", "statistics")).values
    local = trained("local", model=model).values
    assert_close(merged(fedper, "base", "head"), local["base"], EXACT)


@pytest.mark.parametrize("model", [m for m in HEADED if m in NO_DRAWS])
@pytest.mark.parametrize("still", ["base", "head"])
def test_fedrep_with_one_part_held_is_fedper(still, model):
    """As many epochs of the head as the task has; the other phase then changes nothing. Statistics follow both."""
    how = {"model": model, "change": with_groups([still], lr=0.0), "epochs": 2, **IN_ORDER}
    fedrep = trained("fedrep", params={"head_epochs": 2}, **how).values
    fedper = trained("fedper", **how).values
    for group in ("base", "head"):
        assert_close(fedrep[group], fedper[group], EXACT)


def test_fedrep_trains_its_body_under_the_head_that_it_has_trained():
    """One client, one step of each: w ← w - lr·∇f(w, h'), h' = h - lr·∇f(w, h)."""
    data = make_data((9,), clusters=1)
    how = {"data": data, "batch": 64, "participation": 1.0}
    head_first = trained("fedper", 1, change=with_groups(["base"], lr=0.0), **how).values["head"]
    start = trained("fedper", 1, change=with_groups(["head"], init=lambda: head_first), **how)
    fedrep = trained("fedrep", 1, **how)
    assert_close(fedrep.values["base"], start.values["base"], EXACT)
    assert_close(fedrep.values["head"], head_first, EXACT)


def test_a_private_head_is_neither_sent_nor_averaged():
    simulation = simulate("fedper", model="mlp")
    costs = simulation.costs(simulation.start())
    head = sum(t[0].numel() for t in simulation.start().values["head"].values())
    whole = simulate("fedavg", model="mlp")
    assert costs.sent_up == costs.sent_down == whole.costs(whole.start()).sent_up - head
    assert costs.kept_private == head


@pytest.mark.parametrize("variant", ["fedper", "fedrep"])
def test_a_model_without_a_body_is_refused(variant):
    with pytest.raises(ConfigError, match="no body before a last linear layer"):
        simulate(variant, model="linear")


# -------------------------------------------------------------------------------------------- private norm


def test_private_norm_with_shared_norms_is_fedavg():
    ours = trained("private_norm", model="batch_norm", change=shared("norm", "norm_statistics")).values
    fedavg = trained("fedavg", model="batch_norm").values
    assert_close(merged(ours, "base", "norm"), fedavg["base"], EXACT)
    assert_close(ours["norm_statistics"], fedavg["statistics"], EXACT)


def test_private_norm_with_everything_private_is_local():
    ours = trained("private_norm", model="batch_norm", change=private(len(SIZES), "base")).values
    local = trained("local", model="batch_norm").values
    assert_close(merged(ours, "base", "norm"), local["base"], EXACT)
    assert_close(ours["norm_statistics"], local["statistics"], EXACT)


def test_private_norm_without_norm_layers_is_refused():
    with pytest.raises(ConfigError, match=r"private_norm cannot be used for task tiny: .*no normalisation layer"):
        simulate("private_norm", model="mlp")


# ---------------------------------------------------------------------------------------------------- APFL


@pytest.mark.parametrize("model", SHALLOW)
def test_apfls_shared_model_is_fedavg(model):
    apfl, fedavg = (trained(v, model=model).values for v in ("apfl", "fedavg"))
    for group in fedavg:
        assert_close(apfl[group], fedavg[group], EXACT)


@pytest.mark.parametrize("model", SHALLOW)
def test_apfl_held_at_one_trains_local_models(model):
    how = {"model": model, "participation": 1.0}
    apfl = trained("apfl", params={"alpha": 1.0}, change=with_groups(["alpha"], lr=0.0), **how).values
    local = trained("local", **how).values
    assert_close(apfl["personal"], local["base"], EXACT)
    if "statistics" in local:
        assert_close(apfl["personal_statistics"], local["statistics"], EXACT)


def test_apfl_held_at_zero_serves_fedavg(unbounded):
    apfl = simulate("apfl", params={"alpha": 0.0}, change=with_groups(["alpha"], lr=0.0))
    fedavg = simulate("fedavg")
    ours, theirs = (federations.served(some, train(some)) for some in (apfl, fedavg))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


def test_apfls_alpha_takes_one_gradient_in_a_round_and_stays_between_0_and_1():
    """α ← α - lr·⟨v - w, ∇f(v̄)⟩ on the first of two steps by hand; a large rate leads to the ends, not beyond."""
    far = {"batch": 64, "epochs": 2, "participation": 1.0, "change": with_groups(["personal"], init=lambda: scattered)}
    scattered = {
        key: t + 0.3 * torch.randn(t.shape, generator=torch.Generator().manual_seed(0))
        for key, t in simulate("apfl").method.groups["personal"].init().items()
    }
    simulation = simulate("apfl", **far)
    start, end, rows = simulation.start().values, train(simulation, 1).values, simulation.data.train
    for k in range(len(SIZES)):
        x, y = rows.gather(torch.from_numpy(rows.index[k, : SIZES[k]]))
        v, w = {key: t[k] for key, t in start["personal"].items()}, start["base"]
        alpha = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        view = {"personal": v, "base": w, "alpha": {"alpha": alpha}}
        outputs, _ = simulation.method.predict(view, x, {}, torch.ones(len(x)))
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, y), alpha)
        assert float(end["alpha"]["alpha"][k]) == pytest.approx(0.5 - 0.1 * float(slope), abs=1e-10)
    wild = train(simulate("apfl", **{**far, "change": lambda m: with_groups(["alpha"], lr=1e6)(far["change"](m))}), 1)
    assert set(wild.values["alpha"]["alpha"].tolist()) == {0.0, 1.0}


# --------------------------------------------------------------------------------------------------- pFedMe


@pytest.mark.parametrize("model", SHALLOW)
def test_pfedme_of_one_inner_step_that_follows_entirely_is_fedavg(model):
    """θ = w - lr·∇f(w), and w ← w - 1·(w - θ): the outer rate alone is changed, to 1/lam."""
    how = {"params": {"lam": 4.0, "inner_steps": 1}, "change": with_groups(["base"], lr=0.25)}
    pfedme, fedavg = trained("pfedme", model=model, **how), trained("fedavg", model=model)
    assert_close(pfedme.values["base"], fedavg.values["base"], EXACT)


def test_pfedmes_theta_minimises_the_proximal_problem():
    """∇f(θ) + lam·(θ - w) = 0 after many inner steps, with the w of the round's start where there is one batch."""
    how = {"model": "linear", "batch": 64, "participation": 1.0, "lr": 0.3}
    simulation = simulate("pfedme", params={"lam": 2.0, "inner_steps": 200}, **how)
    start, end, rows = simulation.start().values["base"], train(simulation, 1).values["personal"], simulation.data.train
    for k in range(len(SIZES)):
        x, y = rows.gather(torch.from_numpy(rows.index[k, : SIZES[k]]))
        theta = {key: t[k].clone().requires_grad_() for key, t in end.items()}
        outputs, _ = simulation.method.predict({"personal": theta}, x, None, None)
        slopes = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, y), list(theta.values()))
        for (key, value), slope in zip(theta.items(), slopes, strict=True):
            torch.testing.assert_close(slope, -2.0 * (value.detach() - start[key]), rtol=0, atol=1e-8)


def test_pfedme_refuses_rates_that_pass_the_minimum():
    with pytest.raises(
        ConfigError, match=r"pfedme cannot be used for task tiny: `lr` times `lam` is 1, but.* below 10"
    ):
        simulate("pfedme", params={"lam": 10.0}, lr=0.1)


# -------------------------------------------------------------------------------------- mean-regularised


@pytest.mark.parametrize("model", SHALLOW)
def test_mean_regularised_without_a_penalty_is_local(unbounded, model):
    ours = trained("mean_regularised", model=model, params={"lam": 0.0}).values
    local = trained("local", model=model).values
    assert_close(ours["personal"], local["base"], EXACT)


def test_the_mean_of_mean_regularised_is_that_of_the_models_that_it_serves():
    simulation = simulate("mean_regularised", params={"lam": 0.5})
    state = simulation.start()
    for round in (1, 2, 3):
        simulation.train(state, round)
        cohort = torch.from_numpy(simulation.cohort(round))
        weight = torch.tensor(SIZES, dtype=torch.float64)[cohort]
        own = {key: t[cohort] for key, t in state.values["personal"].items()}
        mean = {key: torch.tensordot(weight / weight.sum(), t, 1) for key, t in own.items()}
        assert_close(state.values["base"], mean, EXACT)


def test_one_step_of_mean_regularised_with_a_whole_pull_starts_at_the_mean():
    """lr·lam = 1: w_k ← w_k - lr·∇f(w_k) - (w_k - m) = m - lr·∇f(w_k), with the m that was received."""
    simulation = simulate("mean_regularised", params={"lam": 10.0}, lr=0.1, batch=64, participation=1.0)
    state = train(simulation, 1)
    before = {group: {key: t.clone() for key, t in params.items()} for group, params in state.values.items()}
    simulation.train(state, 2)
    rows = simulation.data.train
    for k in range(len(SIZES)):
        x, y = rows.gather(torch.from_numpy(rows.index[k, : SIZES[k]]))
        own = {key: t[k].clone().requires_grad_() for key, t in before["personal"].items()}
        outputs, _ = simulation.method.predict({"personal": own}, x, None, None)
        slopes = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, y), list(own.values()))
        expected = {key: before["base"][key] - 0.1 * g for key, g in zip(own, slopes, strict=True)}
        assert_close({key: t[k] for key, t in state.values["personal"].items()}, expected, 1e-10)


# -------------------------------------------------------------------------------------------------- starts


def test_every_model_of_a_method_starts_as_fedavgs():
    fedavg = simulate("fedavg").start().values["base"]
    for variant in ("fedprox", "ditto", "apfl", "pfedme", "mean_regularised"):
        values = simulate(variant).start().values
        assert_close(values["base"], fedavg, 0.0)
        for k in range(len(SIZES)) if "personal" in values else ():
            assert_close({key: t[k] for key, t in values["personal"].items()}, fedavg, 0.0)
    for variant in ("fedper", "fedrep"):
        values = simulate(variant).start().values
        assert_close({**values["base"], **{key: t[3] for key, t in values["head"].items()}}, fedavg, 0.0)

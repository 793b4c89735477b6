"""The server's weights p(k) and p(k|c) against plain float64 sums, and its optimisers against hand-written ones.

The method under test answers every round with a target of its own, so that a round shows the weights and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from federations import SIZES, make_data, simulate

from floral.core.spec import Group, Method, Routing, Scope
from floral.toolkit.routes import fixed_logits

K, C, D = len(SIZES), 3, 4
BACKENDS = [pytest.param({"backend": "loop"}, id="loop"), pytest.param({"backend": "vmap", "chunk": 3}, id="vmap")]
TARGETS = torch.randn(K, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SOFT = 3 * torch.randn(K, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def answering(targets=TARGETS, logits=None, member=None, clusters=C):
    """Client k answers `targets[k]` for every value it holds; its route is softmax(logits[k]) or its `member`."""
    d = targets.shape[1]

    def group(scope, value, **more):
        return Group(scope=scope, init=lambda: {"value": value}, lr=1.0, **more)

    groups = {
        "base": group(Scope.SHARED, torch.zeros(d)),
        "models": group(Scope.CLUSTERED, torch.arange(float(clusters))[:, None].repeat(1, d)),
        "target": group(Scope.PRIVATE, targets, fixed=True),
    }
    if member is None:
        groups["router"] = group(Scope.PRIVATE, logits, fixed=True)

    def predict(view, x, noise, mask):
        return view["base"]["value"].new_zeros(len(x), 5), {}

    def answer(objective, trained, fixed, batch, noise, lr):
        moved = {
            name: {"value": fixed["target"]["value"].expand_as(params["value"])} for name, params in trained.items()
        }
        return moved, {}, trained["base"]["value"].sum() * 0

    return Method(
        groups=groups,
        predict=predict,
        local_step=answer,
        routing=Routing(
            cluster_of_client=member,
            log_route=None if member is not None else lambda view: torch.log_softmax(view["router"]["value"], -1),
        ),
    )


def federate(method, sizes=SIZES, **how):
    data = make_data(sizes, clusters=C)
    return simulate("fedavg", data=data, change=lambda _: method, **{"participation": 0.75, **how})


def after_one_round(simulation, round=1):
    state = simulation.start()
    simulation.train(state, round)
    return {name: params["value"] for name, params in state.values.items()}


def expected(cohort, logits, old, empty_cluster="keep", sizes=SIZES, targets=TARGETS):
    """Σ_k p(k) t_k and Σ_k p(k|c) t_k by the formula, in float64."""
    n, t = np.array(sizes, float)[cohort], targets.numpy()[cohort]
    pi = torch.softmax(logits.double(), -1).numpy()[cohort]
    share = n / n.sum()
    mass = (share[:, None] * pi).sum(0)
    models = (share[:, None] * pi / mass).T @ t
    if empty_cluster == "keep":
        models[mass < 1e-6] = old.numpy()[mass < 1e-6]
    return share @ t, models


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("how", BACKENDS)
def test_weights_are_p_of_k_and_p_of_k_given_c(how, dtype):
    simulation = federate(answering(logits=SOFT), dtype=dtype, **how)
    old = simulation.start().values["models"]["value"]
    got = after_one_round(simulation)
    base, models = expected(simulation.cohort(1), SOFT, old)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    np.testing.assert_allclose(got["base"], base, atol=tolerance)
    np.testing.assert_allclose(got["models"], models, atol=tolerance)


@pytest.mark.parametrize("empty_cluster", ["keep", "average"])
@pytest.mark.parametrize("how", BACKENDS)
def test_a_cluster_without_a_client_keeps_its_value_or_takes_the_plain_average(how, empty_cluster):
    """Hard routes of logits 0 and -100, clusters that no client of the cohort has."""
    seen = set()
    for round in range(1, 6):
        logits = fixed_logits(torch.arange(K) % C, C)
        switches = {"massless_cluster": empty_cluster}
        simulation = federate(answering(logits=logits), participation=0.3, switches=switches, **how)
        old = simulation.start().values["models"]["value"]
        cohort = simulation.cohort(round)
        got = after_one_round(simulation, round)
        base, models = expected(cohort, logits, old, empty_cluster)
        absent = set(range(C)) - set((cohort % C).tolist())
        seen |= absent
        np.testing.assert_allclose(got["base"], base, atol=1e-12)
        np.testing.assert_allclose(got["models"], models, atol=1e-12)
        for c in absent:
            plain = base if empty_cluster == "average" else old[c]
            np.testing.assert_allclose(got["models"][c], plain, atol=1e-12)
    assert seen


@pytest.mark.parametrize("empty_cluster", ["keep", "average"])
@pytest.mark.parametrize("how", BACKENDS)
def test_members_of_a_fixed_cluster_are_weighted_within_it(how, empty_cluster):
    """A cluster that no client could name keeps its value under either switch."""
    member = torch.arange(K) % C
    hard = torch.where(torch.nn.functional.one_hot(member, C).bool(), 0.0, -torch.inf)
    for round in (1, 2, 3):
        switches = {"massless_cluster": empty_cluster}
        simulation = federate(answering(member=member), participation=0.3, switches=switches, **how)
        old = simulation.start().values["models"]["value"]
        got = after_one_round(simulation, round)
        with np.errstate(invalid="ignore"):
            _, models = expected(simulation.cohort(round), hard, old)
        np.testing.assert_allclose(got["models"], models, atol=1e-12)


@pytest.mark.parametrize("empty_cluster", ["keep", "average"])
@pytest.mark.parametrize("how", [{"backend": "loop"}, {"backend": "vmap", "chunk": 30}])
def test_seventy_clients_of_wrong_clusters_do_not_make_nan(how, empty_cluster):
    """The published code divides underflowed masses from 55 clients on. Float32, a cluster that nobody has."""
    sizes = (3,) * 70
    targets = torch.randn(70, D, generator=torch.Generator().manual_seed(2))
    logits = fixed_logits(torch.arange(70) % 2, C)
    method = answering(targets, logits)
    simulation = federate(
        method, sizes, participation=1.0, dtype=torch.float32, switches={"massless_cluster": empty_cluster}, **how
    )
    got = after_one_round(simulation)
    assert all(torch.isfinite(t).all() for t in got.values())
    old = simulation.start().values["models"]["value"].double()
    _, models = expected(np.arange(70), logits, old, empty_cluster, sizes, targets.double())
    np.testing.assert_allclose(got["models"], models, atol=1e-6)


def test_a_client_without_rows_neither_trains_nor_weighs():
    data = make_data(clusters=C)
    counts = {**data.counts, "train": data.counts["train"] * (np.arange(K) != 2)}
    simulation = simulate(change=lambda _: answering(logits=SOFT), data=replace(data, counts=counts), participation=1.0)
    got = after_one_round(simulation)
    others = np.array([k for k in range(K) if k != 2])
    base, models = expected(others, SOFT, simulation.start().values["models"]["value"])
    np.testing.assert_allclose(got["base"], base, atol=1e-12)
    np.testing.assert_allclose(got["models"], models, atol=1e-12)


# ----------------------------------------------------------------------------------- the server's optimiser


def test_a_server_lr_moves_by_that_share_of_the_averaged_update():
    method = answering(logits=SOFT)
    models = replace(method.groups["models"], server_lr=0.1)
    method = replace(method, groups={**method.groups, "models": models})
    simulation = federate(method, server={"optimiser": "sgd", "lr": 0.5})
    old = simulation.start().values["models"]["value"]
    got = after_one_round(simulation)
    base, mean = expected(simulation.cohort(1), SOFT, old)
    np.testing.assert_allclose(got["base"], 0.5 * base, atol=1e-12)
    np.testing.assert_allclose(got["models"], 0.9 * old.numpy() + 0.1 * mean, atol=1e-12)


def test_server_adam_is_adam_on_the_pseudo_gradient():
    """Against torch.optim.Adam, fed old minus mean, over 5 rounds."""
    simulation = federate(answering(logits=SOFT), server={"optimiser": "adam", "lr": 0.05})
    state = simulation.start()
    names = ("base", "models")
    reference = [state.values[name]["value"].clone().requires_grad_() for name in names]
    adam = torch.optim.Adam(reference, lr=0.05)
    for round in range(1, 6):
        means = expected(simulation.cohort(round), SOFT, reference[1].detach())
        for parameter, mean in zip(reference, means, strict=True):
            parameter.grad = parameter.detach() - torch.from_numpy(mean)
        adam.step()
        simulation.train(state, round)
        for name, parameter in zip(names, reference, strict=True):
            torch.testing.assert_close(state.values[name]["value"], parameter.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fixed", ["member", "route"])
def test_a_cluster_without_a_client_keeps_its_moments_too(fixed):
    """Else a round in which nobody has the cluster pushes it through Adam's momentum in the rounds after."""
    member = torch.arange(K) % C
    method = answering(member=member) if fixed == "member" else answering(logits=fixed_logits(member, C))
    simulation = federate(method, participation=0.3, server={"optimiser": "adam", "lr": 0.05})
    state = simulation.start()
    simulation.train(state, 1)
    checked = 0
    for round in range(2, 8):
        before = {name: t.clone() for name, t in state.tensors().items()}
        simulation.train(state, round)
        for c in set(range(C)) - set((simulation.cohort(round) % C).tolist()):
            assert torch.equal(state.values["models"]["value"][c], before["value/models/value"][c])
            for name, moment in state.server.items():
                if name.startswith("models"):
                    assert torch.equal(moment[c], before[f"server/{name}"][c]), f"{name} of the absent cluster {c}"
            checked += 1
    assert checked

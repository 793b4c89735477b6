"""Limits of the methods whose server does more than take means, or whose rounds differ from one another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from federations import SHALLOW, SIZES, assert_close, simulate, train, trained

from floral.core.spec import Scope
from floral.methods.cfl import second_half
from floral.methods.momentum_clustering import first_centres, moved
from floral.toolkit.routes import cluster_vectors, params_of_vectors

pytestmark = pytest.mark.usefixtures("without_recording")

EXACT = 1e-12
BACKENDS = [{"backend": "loop"}, {"backend": "vmap", "chunk": 3}, {"backend": "batched", "chunk": 3}]
each_backend = pytest.mark.parametrize("how", BACKENDS, ids=lambda how: how["backend"])
plain_backends = pytest.mark.parametrize("how", BACKENDS[:2], ids=lambda how: how["backend"])
ALL = {"participation": 1.0}


def cluster(values, c):
    return {name: tensor[c] for name, tensor in values.items()}


# ------------------------------------------------------------------------------------------------ fine-tuning


@each_backend
@pytest.mark.parametrize("model", SHALLOW)
def test_fine_tuning_after_the_last_round_is_fedavg(unbounded, model, how):
    ours, fedavg = (
        trained("fedavg_finetune", model=model, params={"after": 1}, **how),
        trained("fedavg", model=model, **how),
    )
    for group, params in fedavg.values.items():
        assert_close(ours.values[group], params, 1e-10)
    assert all(not tensor.any() for tensor in ours.values["difference"].values())


@each_backend
def test_fine_tuning_is_local_training_from_the_shared_model(how):
    """After round 2 of 4 the base stays, bit for bit, and base + d_k is what `local` makes of that start."""
    simulation = simulate("fedavg_finetune", params={"after": 0.5}, **how)
    state = train(simulation, 2)
    base = {name: tensor.clone() for name, tensor in state.values["base"].items()}
    local = simulate("local", **how)
    own = local.start()
    own.values["base"] = {name: tensor.expand(len(SIZES), *tensor.shape).clone() for name, tensor in base.items()}
    for round in (3, 4):
        simulation.train(state, round)
        local.train(own, round)
    assert all(torch.equal(tensor, state.values["base"][name]) for name, tensor in base.items())
    found = {name: base[name] + d for name, d in state.values["difference"].items()}
    assert_close(found, own.values["base"], 1e-10)
    assert simulation.costs_of(state, 2).sent_up > 0
    assert simulation.costs_of(state, 4).bytes_per_client == 0


# ------------------------------------------------------------------------------------------ other optimisers


@pytest.mark.parametrize("model", SHALLOW)
def test_fedopt_with_plain_steps_is_fedavg(model):
    ours = trained("fedavgm", model=model, params={"server": "task", "client": "sgd"})
    for group, params in trained("fedavg", model=model).values.items():
        assert_close(ours.values[group], params, EXACT)


@plain_backends
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_a_clients_steps_are_torchs(kind, how):
    """One client that has all the rows, two epochs a round: torch.optim's steps, begun anew in every round."""
    simulation = simulate(
        f"fedavg_client_{kind}", params={"client_lr": 0.1}, epochs=2, switches={"batches": "fixed"}, **ALL, **how
    )
    state, k = simulation.start(), int(np.argmax(SIZES))
    start = {name: tensor.clone() for name, tensor in state.values["base"].items()}
    trained = simulation.train_chunk(state, 1, np.array([k]), torch.ones(1).double())
    parameters = {name: tensor.requires_grad_() for name, tensor in start.items()}
    lr = simulation.method.groups["base"].lr
    made = {
        "momentum": lambda p: torch.optim.SGD(p, lr, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr, (0.9, 0.99), 1e-3),
    }
    optimiser = made[kind](parameters.values())
    rows = simulation.data.train
    for _ in range(2):
        for at in range(0, SIZES[k], 4):
            x, y = rows.gather(torch.from_numpy(rows.index[k, at : min(at + 4, SIZES[k])]))
            outputs, _ = simulation.method.predict({"base": parameters}, x, {}, None)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(outputs, y).backward()
            optimiser.step()
    assert_close(trained.mean.sums["base"], {name: t.detach() for name, t in parameters.items()}, 1e-10)


@plain_backends
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_a_clients_moments_are_forgotten(kind, how):
    simulation = simulate(f"fedavg_client_{kind}", **how)
    assert all(not tensor.any() for tensor in train(simulation, 2).values["moments"].values())
    assert simulation.costs(simulation.start()).kept_private == 0


# -------------------------------------------------------------------------------------------------- clusters


def test_rows_of_vectors_are_the_models_again():
    params = {"b": torch.randn(3, 2), "a": torch.randn(3, 2, 4)}
    back = params_of_vectors(cluster_vectors(params), params)
    assert all(torch.equal(back[name], params[name]) for name in params)


@each_backend
@pytest.mark.parametrize("model", SHALLOW)
def test_cfl_that_never_splits_is_fedavg(unbounded, model, how):
    ours, fedavg = trained("cfl", model=model, params={"balance": 0}, **how), trained("fedavg", model=model, **how)
    for group, params in fedavg.values.items():
        assert_close(cluster(ours.values[group], 0), params, 1e-10)
    assert not ours.values["choice"]["cluster"].any()


@each_backend
def test_cfl_splits_once_all_clients_are_known_and_both_halves_begin_alike(how):
    simulation = simulate("cfl", params={"balance": 1, "patience": 1}, participation=0.5, rounds=20, **how)
    state, seen = simulation.start(), set()
    for round in range(1, 21):
        simulation.train(state, round)
        seen |= set(simulation.cohort(round).tolist())
        if len(seen) < len(SIZES):
            assert int(state.values["memory"]["used"]) == 1
        else:
            break
    assert int(state.values["memory"]["used"]) == 2
    assert set(state.values["choice"]["cluster"].tolist()) == {0.0, 1.0}
    assert_close(cluster(state.values["base"], 0), cluster(state.values["base"], 1), EXACT)
    assert not state.values["memory"]["known"].any()
    simulation.train(state, round + 1)
    assert not torch.equal(state.values["base"]["out.bias"][0], state.values["base"]["out.bias"][1])


def test_a_bipartition_is_by_direction():
    updates = torch.tensor([[1.0, 0.1], [-2.0, 0.1], [3.0, 0.2], [-0.1, 0.0]])
    assert second_half(updates).tolist() == [False, True, False, True]


@each_backend
@pytest.mark.parametrize("model", SHALLOW)
def test_one_momentum_cluster_without_momentum_is_fedavg(model, how):
    """The model of every client; its running statistics are those of its own samples."""
    how = {"model": model, "clusters": 1, **ALL, **how}
    ours = trained("momentum_clustering", params={"momentum": 0.0}, **how).values["base"]
    fedavg = trained("fedavg", **how).values["base"]
    for k in range(len(SIZES)):
        assert_close(cluster(ours, k), fedavg, 1e-10)


def test_threshold_clustering_by_hand():
    """Of momenta 0, 1, 2, 10 with equal weights and two clusters: the half nearest to 0 are 0 and 1, to 10 2 and 10."""
    momenta, weight = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.full((4,), 0.25)
    products = momenta @ momenta.T
    assert first_centres(products, 3).tolist() == [3, 0, 2]
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
    torch.testing.assert_close(moved(centres, products, weight) @ momenta, torch.tensor([[0.25], [8.0]]))


def test_threshold_clustering_starts_at_centres_that_are_no_momenta():
    """The old centre 4 of momenta 0, 1, 2, 10 is moved to the mean of 1, 2 and twice itself."""
    points, weight = torch.tensor([[0.0], [1.0], [2.0], [10.0], [4.0], [9.0]]), torch.full((4,), 0.25)
    centres = torch.tensor([[0, 0, 0, 0, 1.0, 0], [0, 0, 0, 0, 0, 1.0]])
    new = moved(centres, points @ points.T, weight) @ points
    torch.testing.assert_close(new, torch.tensor([[(1 + 2 + 2 * 4) / 4], [(2 + 10 + 2 * 9) / 4]]))


@each_backend
def test_every_client_keeps_a_model_of_its_own_and_steps_by_a_centre(how):
    """Clients of a round differ from each other; those of one cluster have made the same step; others stay."""
    simulation = simulate("momentum_clustering", participation=0.6, **how)
    state = train(simulation, 2)
    before = {name: tensor.clone() for name, tensor in state.values["base"].items()}
    simulation.train(state, 3)
    cohort, choice = simulation.cohort(3).tolist(), state.values["choice"]["cluster"]
    change = cluster_vectors({name: before[name] - tensor for name, tensor in state.values["base"].items()})
    for k in range(len(SIZES)):
        centre = state.values["memory"]["centre"][int(choice[k])]
        torch.testing.assert_close(change[k], centre if k in cohort else 0 * centre, rtol=0, atol=1e-10)
    assert len(cluster_vectors(state.values["base"]).unique(dim=0)) > 2


@pytest.mark.parametrize("how", BACKENDS[1:], ids=lambda how: how["backend"])
@pytest.mark.parametrize("variant", ["cfl", "momentum_clustering"])
def test_clusters_of_the_server_are_the_same_on_every_backend(variant, how):
    """With seed 0, both momentum centres become equal, and rounding would choose between them."""
    with_params = {"params": {"balance": 1, "patience": 2}} if variant == "cfl" else {"seed": 1}
    ours, other = (train(simulate(variant, rounds=6, **with_params, **some), 6) for some in ({}, how))
    if variant == "momentum_clustering":
        assert len(ours.values["choice"]["cluster"].unique()) == 2
    assert_close(ours.tensors(), other.tensors(), 1e-9)


# ------------------------------------------------------------------------------------------------- FedDBE


def without_vectors(method):
    """A change of method: b_k stays 0."""
    fixed = replace(method.groups["bias"], scope=Scope.FROZEN, init=lambda: {"b": torch.zeros(5)})
    return replace(method, groups={**method.groups, "bias": fixed})


@each_backend
def test_feddbe_without_its_term_and_vectors_is_fedavg(unbounded, how):
    ours = trained("feddbe", params={"kappa": 0.0}, change=without_vectors, **how)
    assert_close(ours.values["base"], trained("fedavg", **how).values["base"], 1e-10)


@each_backend
def test_feddbes_consensus_is_the_mean_of_all_clients_features_and_stays(how):
    """With one local step of all rows it is of the start, weighted by p(k); also of clients that never take part."""
    simulation = simulate("feddbe", batch=64, participation=0.3, **how)
    state = simulation.start()
    start, rows, total = simulate("fedavg").start().values["base"], simulation.data.train, torch.zeros(5).double()
    assert_close(state.values["base"], start, 0.0)
    for k, count in enumerate(SIZES):
        x, _ = rows.gather(torch.from_numpy(rows.index[k, :count]))
        total += torch.relu(x.flatten(1) @ start["hidden.weight"].mT + start["hidden.bias"]).sum(0)
    first = state.values["consensus"]["mean"].clone()
    torch.testing.assert_close(first, total / sum(SIZES), rtol=0, atol=1e-10)
    train(simulation)
    assert torch.equal(state.values["consensus"]["mean"], first)

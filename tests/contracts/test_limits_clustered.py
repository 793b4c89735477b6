"""The limiting cases and equations of the methods that cluster whole models: IFCA, FedEM, FedSoft."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federations import SHALLOW, SIZES, assert_close, buildable, make_data, served, simulate, train, trained

from floral.core.spec import Scope
from floral.engine.costs import Costs
from floral.engine.simulate import Simulation

pytestmark = pytest.mark.usefixtures("without_recording")

EXACT = 1e-12
WHERE = [{"backend": "loop"}, {"backend": "vmap", "chunk": 3}, {"backend": "batched", "chunk": 3}]
each_backend = pytest.mark.parametrize("how", WHERE, ids=lambda how: how["backend"])


def cluster(params, c):
    return {name: tensor[c] for name, tensor in params.items()}


def outputs(simulation, values, k, c):
    """Outputs of model c [n, outputs] on all training rows of client k, and their labels."""
    rows = simulation.data.train
    x, y = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))
    hidden = torch.relu(F.linear(x.flatten(1), values["hidden.weight"][c], values["hidden.bias"][c]))
    return F.linear(hidden, values["out.weight"][c], values["out.bias"][c]), y


def losses(simulation, values, k, clusters):
    """Cross-entropies [C, n] of all models on all training rows of client k."""
    found = [outputs(simulation, values, k, c) for c in range(clusters)]
    return torch.stack([F.cross_entropy(some, y, reduction="none") for some, y in found])


def alone(size=9, **how):
    """Two models and one client that always takes part; another has no rows."""
    return {"data": make_data((size, 0)), "participation": 1.0, **how}


@each_backend
@pytest.mark.parametrize("model", [m for m in SHALLOW if m != "dropout"])  # its masks have an axis of models
@pytest.mark.parametrize("variant", ["ifca", "fedem"])
def test_with_one_model_it_is_fedavg(variant, model, how):
    how = {"model": model, "clusters": 1, **how}
    ours, fedavg = trained(variant, **how).values, trained("fedavg", **how).values
    for group in fedavg:
        assert_close(cluster(ours[group], 0), fedavg[group], 1e-10)


@pytest.mark.parametrize("variant", ["ifca", "fedem"])
def test_with_one_model_regression_is_fedavg_too(variant):
    how = {"clusters": 1, "data": make_data(clusters=1, regression=True)}
    ours, fedavg = trained(variant, **how).values, trained("fedavg", **how).values
    assert_close(cluster(ours["base"], 0), fedavg["base"], EXACT)
    simulation = simulate(variant, **how)
    other = simulate("fedavg", **how)
    torch.testing.assert_close(served(simulation, train(simulation)), served(other, train(other)))


@each_backend
def test_ifca_takes_the_model_of_least_training_loss_of_the_rounds_start(how):
    simulation = simulate("ifca", clusters=3, **how)
    state = simulation.start()
    for round in (1, 2, 3):
        before = {name: tensor.clone() for name, tensor in state.values["base"].items()}
        chosen = state.values["choice"]["cluster"].clone()
        for k in simulation.cohort(round):
            chosen[k] = losses(simulation, before, k, 3).sum(1).argmin()
        simulation.train(state, round)
        assert torch.equal(state.values["choice"]["cluster"], chosen)
        kept = [c for c in range(3) if c not in chosen[simulation.cohort(round)]]
        for name, tensor in state.values["base"].items():
            assert all(torch.equal(tensor[c], before[name][c]) for c in kept)
    assert len(chosen.unique()) > 1


@each_backend
def test_ifca_is_fedavg_among_the_clients_of_a_choice(how):
    """One round with everybody: a model is what those that choose it make of it alone."""
    data = make_data()
    simulation = simulate("ifca", data=data, participation=1.0, seed=4, **how)
    start, end = simulation.start().values, train(simulation, 1).values
    choice = end["choice"]["cluster"]
    assert len(choice.unique()) == 2
    for c in range(2):
        counts = {**data.counts, "train": data.counts["train"] * (choice == c).numpy()}

        def from_model(method, c=c):
            base = replace(method.groups["base"], init=lambda: cluster(start["base"], c))
            return replace(method, groups={**method.groups, "base": base})

        how = {"participation": 1.0, "seed": 4}
        fedavg = trained("fedavg", 1, data=replace(data, counts=counts), change=from_model, **how)
        assert_close(cluster(end["base"], c), fedavg.values["base"], 1e-10)


@each_backend
def test_ifca_leaves_statistics_of_other_models_alone(how):
    simulation = simulate("ifca", model="batch_norm", **alone(**how))
    start, end = simulation.start().values, train(simulation, 1).values
    chosen = int(end["choice"]["cluster"][0])
    for group in ("base", "statistics"):
        assert_close(cluster(end[group], 1 - chosen), cluster(start[group], 1 - chosen), 0.0)
        assert any(not torch.equal(t[chosen], start[group][name][chosen]) for name, t in end[group].items())


def test_ifca_counts_one_model_but_for_what_it_receives():
    costs, whole = (costs_of(variant, clusters=3, epochs=2) for variant in ("ifca", "fedavg"))
    assert costs.sent_down == 3 * whole.sent_down
    assert costs.sent_up == whole.sent_up + 1
    assert (costs.trainable_per_client, costs.served) == (whole.trainable_per_client, whole.served)
    assert costs.passes_per_sample == pytest.approx(1 + 3 / 3 / 2)
    assert costs.kept_private == 1 and costs.server == 3 * whole.server


@each_backend
@pytest.mark.parametrize("model", [m for m in SHALLOW if buildable("ifca_shared_body", m)])
def test_ifca_with_one_head_is_fedavg(model, how):
    """Also with the same dropout: one model trains."""
    how = {"model": model, "clusters": 1, **how}
    ours, fedavg = trained("ifca_shared_body", **how).values, trained("fedavg", **how).values
    assert_close(ours["base"] | cluster(ours["heads"], 0), fedavg["base"], 1e-10)
    assert_close(ours.get("statistics", {}), fedavg.get("statistics", {}), 1e-10)


def test_ifcas_shared_body_is_chosen_from_and_sent_once():
    costs, whole = (costs_of(variant, clusters=3, epochs=2) for variant in ("ifca_shared_body", "fedavg"))
    head, share = 5 * 5 + 5, 5 * 5 / (16 * 5 + 5 * 5)
    assert costs.sent_down == whole.sent_down + 2 * head
    assert costs.sent_up == whole.sent_up + 1
    assert costs.passes_per_sample == pytest.approx(1 + (1 - share + 3 * share) / 3 / 2)


class Scripted:
    """All clients before round 1, whose choices are given: for each start, how many clients choose each model."""

    def __init__(self, *counts):
        self.counts, self.starts = iter(counts), []

    def assigned(self, start):
        self.starts.append(next(iter(start.values())))
        counts = torch.tensor(next(self.counts))
        return {"choice": {"cluster": torch.arange(len(counts)).repeat_interleave(counts)}}


@pytest.mark.parametrize("variant", ["ifca", "ifca_shared_body"])
@pytest.mark.parametrize(
    ("too_few", "enough"),
    [
        ((34, 66), (35, 65)),  # the authors' code: 35 % of the clients
        ((30, 9, 31, 30), (30, 10, 30, 30)),  # 10 %
        ((13, 40, 47), (14, 40, 46)),  # ours: 0.4/C, 13.3 %
    ],
)
def test_ifca_draws_its_start_again_until_each_model_is_chosen(variant, too_few, enough):
    everyone = Scripted(too_few, enough)
    (start,) = simulate(variant, clusters=len(enough)).method.prepare(everyone).values()
    first, second = everyone.starts
    assert_close(start, second, 0.0)
    models = torch.cat([first["out.weight"], second["out.weight"]])
    assert len(models.unique(dim=0)) == 2 * len(enough), "two models of the draws are equal"


def test_ifca_ends_with_the_best_of_100_draws_if_none_is_good_enough():
    everyone = Scripted(*[(0, 7)] * 20, (1, 6), (2, 5), (5, 2), *[(1, 6)] * 77)
    (start,) = simulate("ifca").method.prepare(everyone).values()
    assert len(everyone.starts) == 100
    assert_close(start, everyone.starts[21], 0.0)


@pytest.mark.parametrize("variant", ["ifca", "ifca_shared_body"])
def test_ifcas_clients_choose_among_the_models_of_the_start(variant):
    """By their losses, with 35 % of 7 clients at least for each of two models. The first draws do not have this."""
    is_first = set()
    for seed in range(6):
        simulation = simulate(variant, data=make_data(), seed=seed)
        start, drawn = simulation.start().values, replace(simulation.method, prepare=None)
        first = Simulation(drawn, simulation.data, simulation.settings, simulation.execution).start().values
        models = {name: torch.stack([tensor] * 2) for name, tensor in start["base"].items()} | start.get("heads", {})
        if variant == "ifca":
            models = start["base"]
        choice = [int(losses(simulation, models, k, 2).sum(1).argmin()) for k in range(len(SIZES))]
        assert min(choice.count(0), choice.count(1)) >= 3
        clustered = "heads" if variant == "ifca_shared_body" else "base"
        is_first.add(torch.equal(start[clustered]["out.weight"], first[clustered]["out.weight"]))
    assert is_first == {False, True}


def costs_of(variant, **how) -> Costs:
    simulation = simulate(variant, **how)
    return simulation.costs(simulation.start())


# ------------------------------------------------------------------------------------------------- FedEM


@each_backend
def test_fedems_weights_are_the_mean_responsibilities_of_the_rounds_start(how):
    simulation = simulate("fedem", clusters=3, **how)
    state = simulation.start()
    for round in (1, 2, 3):
        before = {name: tensor.clone() for name, tensor in state.values["base"].items()}
        weights = state.values["mixture"]["log_weights"].exp()
        for k in simulation.cohort(round):
            q = weights[k][:, None] * (-losses(simulation, before, k, 3)).exp()
            weights[k] = (q / q.sum(0)).mean(1)
        simulation.train(state, round)
        assert_close({"π": state.values["mixture"]["log_weights"].exp()}, {"π": weights}, EXACT)
    assert float(weights.std(0).max()) > 1e-3


@each_backend
def test_fedems_models_take_weighted_steps_with_the_responsibilities_of_the_start(how):
    """One client, two rounds of full batches over three epochs, by hand: q is not renewed within a round."""
    simulation = simulate("fedem", batch=64, epochs=3, lr=0.5, **alone(**how))
    state = train(simulation, 2)
    values = simulation.start().values
    models, weights = values["base"], values["mixture"]["log_weights"][0].exp()
    for _ in range(2):
        joint = weights[:, None] * (-losses(simulation, models, 0, 2)).exp()
        q = joint / joint.sum(0)
        for _ in range(3):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in models.items()}
            (q * losses(simulation, leaves, 0, 2)).sum(0).mean().backward()
            models = {name: leaf.detach() - 0.5 * leaf.grad for name, leaf in leaves.items()}
        weights = q.mean(1)
    assert_close(state.values["base"], models, 1e-10)
    assert_close({"π": state.values["mixture"]["log_weights"][0].exp()}, {"π": weights}, 1e-10)


def test_fedem_averages_all_models_with_the_shares_of_rows():
    """p(k), not p(k|c): from rounds of each client alone."""
    how = {"participation": 1.0, "clusters": 2}
    together = trained("fedem", 1, **how).values["base"]
    mean = {name: torch.zeros_like(tensor) for name, tensor in together.items()}
    for k, size in enumerate(SIZES):
        data = make_data()
        counts = {**data.counts, "train": data.counts["train"] * (np.arange(len(SIZES)) == k)}
        single = trained("fedem", 1, data=replace(data, counts=counts), **how).values["base"]
        for name, tensor in single.items():
            mean[name] += size / sum(SIZES) * tensor
    assert_close(together, mean, EXACT)


def test_fedem_serves_the_mixture_of_probabilities():
    simulation = simulate("fedem", clusters=3)
    state = train(simulation)
    k = int(simulation.cohort(1)[0])
    weights = state.values["mixture"]["log_weights"][k].exp()
    probabilities = [outputs(simulation, state.values["base"], k, c)[0].softmax(-1) for c in range(3)]
    rows = simulation.data.train
    x, _ = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))
    view = {"base": state.values["base"], "mixture": {"log_weights": state.values["mixture"]["log_weights"][k]}}
    found, _ = simulation.method.predict(view, x, None, None)
    expected = sum(w * p for w, p in zip(weights, probabilities, strict=True))
    torch.testing.assert_close(found.exp(), expected, rtol=0, atol=EXACT)


def test_the_report_shows_fedems_mixtures_not_its_uniform_weights():
    simulation = simulate("fedem")
    state = train(simulation)
    routes = simulation.evaluate(state, 3, None).routes
    np.testing.assert_allclose(routes, state.values["mixture"]["log_weights"].exp().numpy(), atol=1e-12)
    assert routes.std() > 1e-3


def test_fedem_counts_all_models_and_the_e_step():
    costs, whole = (costs_of(variant, clusters=3, epochs=2) for variant in ("fedem", "fedavg"))
    assert (costs.sent_down, costs.sent_up) == (3 * whole.sent_down, 3 * whole.sent_up)
    assert costs.passes_per_sample == pytest.approx(3 + 3 / 3 / 2)
    assert costs.kept_private == 3


# ----------------------------------------------------------------------------------------------- FedSoft


@each_backend
@pytest.mark.parametrize("model", [m for m in SHALLOW if m != "batch_norm"])  # statistics are those of the own model
def test_fedsoft_with_one_centre_as_the_start_is_fedprox(model, how):
    """Also with the same dropout: one model trains."""
    how = {"model": model, "clusters": 1, "epochs": 2, **how}
    ours = trained("fedsoft", params={"lam": 0.7, "start": "centres"}, **how).values
    fedprox = trained("fedprox", params={"mu": 0.7}, **how).values
    assert_close(cluster(ours["base"], 0), fedprox["base"], 1e-10)


@each_backend
@pytest.mark.parametrize("model", SHALLOW)
def test_fedsoft_hardly_tied_to_its_centres_is_local(model, how):
    """lam → 0: the models of the clients' own, with their statistics."""
    ours = trained("fedsoft", model=model, params={"lam": 1e-300}, **how).values
    local = trained("local", model=model, **how).values
    assert_close(ours["personal"], local["base"], 1e-10)
    if "statistics" in local:
        assert_close(ours["personal_statistics"], local["statistics"], 1e-10)


@each_backend
def test_fedsofts_importances_are_shares_of_rows_above_a_floor(how):
    simulation = simulate("fedsoft", clusters=3, params={"floor": 0.05}, participation=1.0, seed=3, **how)
    start, end = simulation.start().values, train(simulation, 1).values
    for k in range(len(SIZES)):
        best = losses(simulation, start["base"], k, 3).argmin(0)
        expected = (best == torch.arange(3)[:, None]).double().mean(1).clamp(min=0.05)
        torch.testing.assert_close(end["importance"]["weights"][k], expected, rtol=0, atol=EXACT)
    assert float(end["importance"]["weights"].std(0).min()) > 0


@each_backend
def test_fedsofts_centres_are_means_of_the_clients_models(how):
    """c_s = Σ_k v_sk w_k with v_sk ∝ u_ks n_k, over everybody."""
    end = trained("fedsoft", 1, clusters=3, participation=1.0, seed=3, **how).values
    mass = torch.tensor(SIZES).double()[:, None] * end["importance"]["weights"]
    expected = {name: torch.einsum("ks,k...->s...", mass / mass.sum(0), w) for name, w in end["personal"].items()}
    assert_close(end["base"], expected, EXACT)


def test_fedsoft_steps_towards_its_centres():
    """One client, one full batch: w - lr·(∇f + lam·Σ_s u_s (w - c_s)), by hand."""
    simulation = simulate("fedsoft", batch=64, params={"lam": 0.8, "floor": 0.1}, **alone())
    start, end = simulation.start().values, train(simulation, 1).values
    u = (losses(simulation, start["base"], 0, 2).argmin(0) == torch.arange(2)[:, None]).double().mean(1).clamp(min=0.1)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start["personal"].items()}
    losses(simulation, leaves, 0, 1).mean().backward()
    for name, w in start["personal"].items():
        pull = sum(u[s] * (w[0] - start["base"][name][s]) for s in range(2))
        expected = w[0] - 0.1 * (leaves[name].grad[0] + 0.8 * pull)
        torch.testing.assert_close(end["personal"][name][0], expected, rtol=0, atol=EXACT)


def test_fedsoft_sends_all_centres_down_and_one_model_up():
    costs, whole = (costs_of(variant, clusters=3) for variant in ("fedsoft", "fedavg"))
    assert (costs.sent_down, costs.sent_up) == (3 * whole.sent_down, whole.sent_up + 3)
    assert costs.trainable_per_client == whole.trainable_per_client
    assert costs.kept_private == whole.trainable_per_client + 3
    assert costs.passes_per_sample == pytest.approx(1 + 3 / 3)


# ---------------------------------------------------------------------------------------------- the slot


@each_backend
@pytest.mark.parametrize("variant", ["ifca", "fedem", "fedsoft"])
def test_absent_clients_keep_what_they_were_assigned(variant, how):
    simulation = simulate(variant, participation=0.3, **how)
    private = [name for name, group in simulation.method.groups.items() if group.scope is Scope.PRIVATE]
    start, end = simulation.start(), train(simulation, 1)
    absent = [k for k in range(len(SIZES)) if k not in simulation.cohort(1)]
    for group in private:
        for name, tensor in end.values[group].items():
            assert torch.equal(tensor[absent], start.values[group][name][absent])

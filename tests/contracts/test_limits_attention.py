"""FedALA and FedAMP: their limiting cases, and their equations written out as plain loops."""

from __future__ import annotations

import federations
import plain_loops as plain
import pytest
import torch
from federations import SHALLOW, assert_close, make_data, served, train, trained
from plain_loops import CLIENTS, EXACT, UNEQUAL, each_backend, simulated

# ----------------------------------------------------------------------------------------------------------- FedALA


@pytest.mark.parametrize("model", SHALLOW)
def test_fedala_without_steps_on_its_weights_is_fedavg(model, unbounded):
    ours, fedavg = (
        federations.simulate("fedala", model=model, params={"rate": 0.0}),
        federations.simulate("fedavg", model=model),
    )
    end, other = train(ours), train(fedavg)
    for group in other.values:
        assert_close(end.values[group], other.values[group], EXACT)
    torch.testing.assert_close(served(ours, end), served(fedavg, other), rtol=0, atol=EXACT)


@each_backend
@pytest.mark.parametrize("layers", [1, 2])
def test_fedala(layers, how):
    """W ← clip(W - η g ⊙ (w - v), 0, 1) on all samples, the mixture v + (w - v) ⊙ W, then SGD on it."""
    params = {"layers": layers, "steps": 3, "rate": 5.0}
    simulation = simulated("fedala", UNEQUAL, params=params, **how)
    state = simulation.start()
    w = plain.copied(state.values["base"])
    mixed = [name for name in w if layers == 2 or name.startswith("out.")]
    v, weights = [w] * 5, [{name: torch.ones_like(w[name]) for name in mixed} for _ in CLIENTS]

    def mixture(w, v, weights):
        return {n: v[n] + (t - v[n]) * weights[n] if n in mixed else t for n, t in w.items()}

    for round in (1, 2, 3):
        for k in CLIENTS:
            for _ in range(3):
                held = plain.samples(simulation, k)
                (g,) = plain.gradients(lambda m, held=held: plain.loss(m, *held), mixture(w, v[k], weights[k]))
                weights[k] = {n: (t - 5.0 * g[n] * (w[n] - v[k][n])).clamp(0, 1) for n, t in weights[k].items()}
            v[k] = plain.sgd(mixture(w, v[k], weights[k]), plain.batches(simulation, k))
        w = plain.mean(v, plain.shares(simulation))
        simulation.train(state, round)
        assert_close(state.values["base"], w, EXACT)
        for k in CLIENTS:
            assert_close(plain.row(state.values["personal"], k), v[k], EXACT)
            assert_close(plain.row(state.values["weights"], k), weights[k], EXACT)
    assert all(0 <= float(t.min()) < 1 for t in weights[0].values()), "no weight has moved"
    x = plain.inputs_of_test(simulation)
    for k, outputs in enumerate(served(simulation, state)):
        torch.testing.assert_close(outputs, plain.net(mixture(w, v[k], weights[k]), x), rtol=0, atol=EXACT)


# ----------------------------------------------------------------------------------------------------------- FedAMP


@pytest.mark.parametrize("variant", ["fedamp", "heurfedamp"])
@pytest.mark.parametrize("model", SHALLOW)
def test_fedamp_without_its_penalty_is_local(variant, model, unbounded):
    ours, local = (
        federations.simulate(variant, model=model, params={"lam": 0.0}),
        federations.simulate("local", model=model),
    )
    end, other = train(ours), train(local)
    for group in other.values:
        assert_close(end.values[group], other.values[group], EXACT)


@each_backend
@pytest.mark.parametrize("participation", [1.0, 0.6])
@pytest.mark.parametrize("variant", ["fedamp", "heurfedamp"])
def test_fedamp(variant, participation, how):
    """u_k = (1 - Σ ξ_kj) w_k + Σ ξ_kj w_j after each round; w_k by SGD on f_k(w) + lam/2 ‖w - u_k‖²."""
    attention, sigma, lam = 0.8, 0.5, 0.7
    params = {"attention": attention, "sigma": sigma, "lam": lam}
    simulation = simulated(variant, UNEQUAL, params=params, participation=participation, **how)
    state = simulation.start()
    w, u = ([plain.row(state.values["base"], k) for k in CLIENTS] for _ in range(2))
    seen = set()
    for round in (1, 2, 3, 4):
        cohort = simulation.cohort(round).tolist()
        seen |= set(cohort)
        for k in cohort:

            def pulled(v, x, y, u=u[k]):
                return plain.loss(v, x, y) + lam / 2 * sum((v[name] - u[name]).square().sum() for name in v)

            w[k] = plain.sgd(w[k], plain.batches(simulation, k), pulled)
        vectors = [torch.cat([w[k][name].flatten() for name in sorted(w[k])]) for k in CLIENTS]
        for k in cohort:
            others = sorted(seen - {k})
            if variant == "fedamp":
                xi = [
                    attention / len(others) * torch.exp(-(vectors[k] - vectors[j]).square().sum() / sigma)
                    for j in others
                ]
            else:
                cosines = [torch.cosine_similarity(vectors[k], vectors[j], dim=0) for j in others]
                xi = list(attention * torch.softmax(sigma * torch.stack(cosines), 0))
            rest = 1 - sum(xi)
            u[k] = {n: rest * w[k][n] + sum(s * w[j][n] for s, j in zip(xi, others, strict=True)) for n in w[k]}
        simulation.train(state, round)
        for k in CLIENTS:
            assert_close(plain.row(state.values["base"], k), w[k], EXACT)
            assert_close(plain.row(state.values["cloud"], k), u[k], EXACT)
    assert len(seen) == 5


def test_similar_models_weigh_more_in_fedamp():
    """The means of a client are nearer to the models of its true cluster than with equal weights (sigma near 0)."""
    data = make_data((40,) * 8, clusters=2, shape=(4, 4))
    same = torch.from_numpy(data.cluster[:, None] == data.cluster[None])
    of_others = ~torch.eye(8, dtype=torch.bool)

    def relative_distance(sigma):
        """The mean distance from other models of the same cluster, divided by that from those of other clusters."""
        how = {"participation": 1.0, "epochs": 3, "params": {"sigma": sigma, "attention": 0.9}}
        values = trained("heurfedamp", 8, data=data, **how).values
        models, clouds = (
            torch.cat([values[group][name].flatten(1) for name in sorted(values[group])], 1)
            for group in ("base", "cloud")
        )
        distance = torch.cdist(clouds, models)
        return float(distance[same & of_others].mean() / distance[~same].mean())

    assert relative_distance(50.0) < 0.8 * relative_distance(1e-9)


def test_a_single_client_has_nobody_to_attend_to():
    how = {"data": make_data((13,), clusters=1), "participation": 1.0}
    state = trained("heurfedamp", **how)
    assert_close(state.values["cloud"], state.values["base"], EXACT)

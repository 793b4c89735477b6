"""pFedHN: its limiting case, its equations written out as plain loops, and clients that join."""

from __future__ import annotations

import federations
import plain_loops as plain
import pytest
import torch
from federations import assert_close, served, train, view_of
from plain_loops import CLIENTS, EXACT, UNEQUAL, each_backend, simulated

from floral.engine.unseen import personalised

HEAD = ("out.weight", "out.bias")


@pytest.mark.parametrize("model", ["mlp", "lstm", "dropout"])
def test_pfedhn_whose_hypernetwork_is_a_bias_is_fedavg(model, unbounded):
    """Running statistics, which FedAvg averages, stay with the client: so there is no batch norm here."""
    ours, fedavg = (
        federations.simulate("pfedhn", model=model, params={"hidden": 0, "rate": 1.0}),
        federations.simulate("fedavg", model=model),
    )
    end, other = train(ours), train(fedavg)
    torch.testing.assert_close(served(ours, end), served(fedavg, other), rtol=0, atol=EXACT)


def made(phi, v, like):
    """The model that the hypernetwork makes of the embedding v: one hidden layer, ReLU, one more, and the output."""
    z = torch.relu(phi["0.weight"] @ v + phi["0.bias"])
    z = phi["1.weight"] @ z + phi["1.bias"]
    parts = (phi["out.weight"] @ z + phi["out.bias"]).split([like[name].numel() for name in sorted(like)])
    return {name: part.reshape(like[name].shape) for name, part in zip(sorted(like), parts, strict=True)}


@each_backend
@pytest.mark.parametrize("participation", [1.0, 0.6])
@pytest.mark.parametrize("variant", ["pfedhn", "pfedhn_pc"])
def test_pfedhn(variant, participation, how):
    """φ + α Σ p_k (∂θ_k/∂φ)ᵀ Δ_k and v_k + α (∂θ_k/∂v_k)ᵀ Δ_k, by the gradients of ⟨θ_k, Δ_k⟩."""
    params = {"embedding": 2, "hidden": 3, "depth": 1, "rate": 0.5}
    simulation = simulated(variant, UNEQUAL, params=params, participation=participation, epochs=2, **how)
    state = simulation.start()
    phi = plain.copied(state.values["hypernetwork"])
    v = list(state.values["embedding"]["now"].clone())
    w = [{**plain.row(state.values["base"], k), **plain.row(state.values.get("head", {}), k)} for k in CLIENTS]
    start = {name: t for name, t in w[0].items() if variant == "pfedhn" or name not in HEAD}
    assert_close(made(phi, v[0], start), start, EXACT)
    for round in (1, 2, 3):
        cohort = sorted(simulation.cohort(round).tolist())
        count = [len(plain.samples(simulation, k)[1]) for k in cohort]
        slopes = []
        for k in cohort:
            received = made(phi, v[k], start)
            w[k] = plain.sgd({**w[k], **received}, 2 * plain.batches(simulation, k))
            change = {name: w[k][name] - received[name] for name in start}

            def product(phi, v, change=change):
                theta = made(phi, v["v"], start)
                return sum((theta[name] * change[name]).sum() for name in start)

            of_phi, of_v = plain.gradients(product, phi, {"v": v[k]})
            slopes.append(of_phi)
            v[k] = v[k] + 0.5 * of_v["v"]
        phi = plain.stepped(phi, plain.mean(slopes, [n / sum(count) for n in count]), -0.5)
        simulation.train(state, round)
        assert_close(state.values["hypernetwork"], phi, EXACT)
        for k in CLIENTS:
            torch.testing.assert_close(state.values["embedding"]["now"][k], v[k], rtol=0, atol=EXACT)
    models = [{**w[k], **made(phi, v[k], start)} for k in CLIENTS]
    assert float((models[0]["hidden.weight"] - models[1]["hidden.weight"]).abs().max()) > 1e-4, "all models are equal"
    x = plain.inputs_of_test(simulation)
    for k, logits in enumerate(served(simulation, state)):
        torch.testing.assert_close(logits, plain.net(models[k], x), rtol=0, atol=EXACT)


def test_a_client_that_joins_trains_its_embedding_under_the_fixed_hypernetwork():
    simulation = federations.simulate("pfedhn", participation=1.0, params={"depth": 0, "rate": 0.5})
    state = train(simulation)
    joined, values = personalised(simulation.method, state, simulation.data, simulation.settings, [4], 2)
    assert_close(values.values["hypernetwork"], state.values["hypernetwork"], 0.0)
    embeddings, trained = values.values["embedding"]["now"], simulation.data.train.count > 0
    assert all(bool(embeddings[k].any()) for k in trained.nonzero()[0])
    at_zero = {**view_of(joined, values, 0), "embedding": {"now": torch.zeros_like(embeddings[0])}}
    x = joined.data.test.decode(joined.data.test.x[:8])
    start = joined.method.predict(at_zero, x, None, None)[0]
    assert float((served(joined, values)[0] - start).abs().max()) > 1e-4

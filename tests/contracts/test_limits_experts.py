"""FedAMoLE: its limiting case, its equations written out as plain loops, and how experts choose their clients."""

from __future__ import annotations

import itertools
from dataclasses import replace

import federations
import plain_loops as plain
import pytest
import torch
import torch.nn.functional as F
from federations import assert_close, served, train
from plain_loops import CLIENTS, EXACT, FROZEN, UNEQUAL, each_backend, simulated

from floral.toolkit.assignment import choose_clients

LAYERS = ("hidden", "out")
EXPERTS, TOP, BALANCE = 3, 2, 0.3


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_fedamole_with_one_expert_is_fedit_of_twice_the_rank(model, unbounded):
    how = {"model": model, "rounds": 4}
    plain_factors = {**FROZEN, "bias": False}
    ours = federations.simulate("fedamole", params={**plain_factors, "rank": 1, "experts": 1}, **how)
    both = ours.start().values
    start = {n: torch.cat([t, both["experts"][n][0]], 0 if n.endswith(".A") else 1) for n, t in both["shared"].items()}

    def same_start(method):
        return replace(
            method, groups={**method.groups, "adaptor": replace(method.groups["adaptor"], init=lambda: start)}
        )

    fedit = federations.simulate("fedit", params={**plain_factors, "rank": 2}, change=same_start, **how)
    torch.testing.assert_close(served(ours, train(ours, 4)), served(fedit, train(fedit, 4)), rtol=0, atol=EXACT)


def mixed(base, shared, experts, projection, assigned, x):
    """Logits, the balance term, and the mean input of each layer. Experts are lists of adaptors, by their numbers."""
    terms, inputs = [], {}

    def layer(name, x):
        held = [j for j in range(EXPERTS) if assigned[name][j]]
        inputs[name], rows, probabilities, picked = x.mean(0), [], [], []
        for sample in x:
            token = projection[name] @ sample
            rank = len(token)
            scores = torch.stack([(experts[j][f"{name}.A"] @ sample) @ token for j in held]) / rank**0.5
            share = torch.softmax(scores, 0)
            top = sorted(range(len(held)), key=lambda i: -float(share[i].detach()))[:TOP]
            total = sum(share[i] for i in top)
            output = base[f"{name}.weight"] @ sample + base[f"{name}.bias"]
            for e, weight in [(shared, 1.0), *((experts[held[i]], share[i] / total) for i in top)]:
                output = output + weight * (e[f"{name}.B"] @ (e[f"{name}.A"] @ sample) + e[f"{name}.bias"])
            rows.append(output)
            probabilities.append(share)
            picked += top
        fractions = torch.bincount(torch.tensor(picked), minlength=len(held)).double() / len(picked)
        terms.append(len(held) * (fractions * torch.stack(probabilities).mean(0)).sum())
        return torch.stack(rows)

    logits = layer("out", torch.relu(layer("hidden", x.flatten(1))))
    return logits, sum(terms), inputs


def best_choice(scores, choices, least, most):
    """Of all ways in which experts choose clients within the bounds, the one with the largest sum, by trying all."""
    value = torch.softmax(scores, 1)
    options = list(itertools.combinations(range(scores.shape[1]), choices))
    allowed = []
    for combination in itertools.product(options, repeat=len(scores)):
        mask = torch.zeros_like(scores)
        for j, clients in enumerate(combination):
            mask[j, list(clients)] = 1
        if bool(((mask.sum(0) >= least) & (mask.sum(0) <= most)).all()):
            allowed.append((float((mask * value).sum()), mask))
    return max(allowed, key=lambda pair: pair[0])[1].T


@each_backend
@pytest.mark.parametrize("participation", [1.0, 0.6])
def test_fedamole(participation, how):
    """Local steps with the balance term, means over the clients that hold an expert, and the next choice of clients."""
    params = {**FROZEN, "rank": 2, "experts": EXPERTS, "held": 1.8, "most": 3, "top": TOP, "balance": BALANCE}
    simulation = simulated("fedamole", UNEQUAL, params=params, rounds=4, participation=participation, **how)
    state = simulation.start()
    first = {name: t.clone() for name, t in state.values["next"].items()}
    simulation.train(state, 1)
    assert_close(state.values["next"], first, 0.0)  # the warm-up
    base, shared, p_of = (plain.copied(state.values[group]) for group in ("base", "shared", "projection"))
    experts = [plain.row(state.values["experts"], j) for j in range(EXPERTS)]
    following, trained_with, tokens, keys = first, {}, {}, {}
    for round in (2, 3, 4):
        cohort = sorted(simulation.cohort(round).tolist())
        count = [len(plain.samples(simulation, k)[1]) for k in cohort]
        sent = {}
        for k in cohort:
            trained_with[k] = assigned = {name: following[name][k].clone() for name in LAYERS}
            models = [shared, p_of, *experts]
            for x, y in plain.batches(simulation, k):

                def objective(shared, p_of, *experts, x=x, y=y, assigned=assigned):
                    logits, term, _ = mixed(base, shared, experts, p_of, assigned, x)
                    return F.cross_entropy(logits, y) + BALANCE * term

                slopes = plain.gradients(objective, *models)
                models = [plain.stepped(w, g) for w, g in zip(models, slopes, strict=True)]
            sent[k] = models
            _, _, inputs = mixed(base, models[0], models[2:], models[1], assigned, plain.samples(simulation, k)[0])
            tokens[k] = {name: models[1][name] @ inputs[name] for name in LAYERS}
            keys[k] = {n: [models[2 + j][f"{n}.A"] @ inputs[n] for j in range(EXPERTS)] for n in LAYERS}
        p = [n / sum(count) for n in count]
        shared, p_of = (plain.mean([sent[k][at] for k in cohort], p) for at in (0, 1))
        for j, name in itertools.product(range(EXPERTS), LAYERS):
            holders = [(q, k) for q, k in zip(p, cohort, strict=True) if trained_with[k][name][j]]
            if holders:
                total = sum(q for q, _ in holders)
                for key in ("A", "B", "bias"):
                    parts = [q / total * sent[k][2 + j][f"{name}.{key}"] for q, k in holders]
                    experts[j] = {**experts[j], f"{name}.{key}": sum(parts)}
        before, following = state.values["next"], {}
        simulation.train(state, round)
        for name in LAYERS:
            assert bool(before[name].any())
            if set(tokens) == set(CLIENTS):
                means = [
                    sum(keys[k][name][j] for k in CLIENTS if trained_with[k][name][j])
                    / sum(trained_with[k][name][j] for k in CLIENTS)
                    for j in range(EXPERTS)
                ]
                scores = torch.stack([torch.stack([e @ tokens[k][name] for k in CLIENTS]) for e in means]) / 2**0.5
                torch.testing.assert_close(state.values["next"][name], best_choice(scores, 3, TOP - 1, 3))
            following[name] = state.values["next"][name].clone()
        assert_close(state.values["shared"], shared, EXACT)
        assert_close(state.values["projection"], p_of, EXACT)
        for j in range(EXPERTS):
            assert_close(plain.row(state.values["experts"], j), experts[j], EXACT)
    x = plain.inputs_of_test(simulation)
    assert set(trained_with) == set(CLIENTS)
    for k, logits in enumerate(served(simulation, state)):
        expected = mixed(base, shared, experts, p_of, trained_with[k], x)[0]
        torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT)


def test_experts_choose_the_clients_with_the_best_sum_of_scores():
    scores = 3 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    for choices, least, most in ((2, 1, 2), (2, 0, 3), (3, 1, 3)):
        assert torch.equal(choose_clients(scores, choices, least, most), best_choice(scores, choices, least, most))


def test_bounds_that_no_choice_can_keep_are_widened():
    assert torch.equal(choose_clients(torch.zeros(8, 1), 1, 2, 4), torch.ones(1, 8))
    held = choose_clients(torch.full((2, 5), torch.nan), 2, 2, 4)
    assert held.sum(0).tolist() == [2, 2] and float(held.sum(1).min()) >= 0

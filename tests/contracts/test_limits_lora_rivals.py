"""LoRA-FAIR and HiLoRA: their limiting cases, and their equations written out as plain loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import federations
import plain_loops as plain
import pytest
import torch
from federations import assert_close, make_data, served, train, trained
from plain_loops import CLIENTS, EXACT, FROZEN, UNEQUAL, each_backend, simulated

from floral.toolkit.clustering import (
    average_linkage,
    best_linkage,
    k_means,
    silhouette,
    spectral_clusters,
    subspace_distances,
)

JOINT: dict[str, Any] = {"base": "joint"}
LAYERS = ("hidden", "out")

# -------------------------------------------------------------------------------------------------------- LoRA-FAIR


@pytest.mark.parametrize("model", ["mlp", "cnn", "lstm"])
def test_lora_fair_with_a_strong_penalty_is_fedit(model):
    params = {**JOINT, "convolution": "in"}
    ours = trained("lora_fair", model=model, params={**params, "lam": 1e12}, batch=2)
    fedit = trained("fedit", model=model, params=params, batch=2)
    for group in ("base", "adaptor"):
        assert_close(ours.values[group], fedit.values[group], EXACT)


def test_lora_fair_of_one_client_is_fedit():
    how = {"data": make_data((13,), clusters=1), "participation": 1.0, "params": JOINT}
    ours, fedit = (trained(variant, **how) for variant in ("lora_fair", "fedit"))
    assert_close(ours.values["adaptor"], fedit.values["adaptor"], EXACT)


@each_backend
def test_lora_fair(how):
    """A and B are averaged; ΔB minimises ‖Σ p_k B_k A_k - (B + ΔB) A‖² + λ ‖ΔB‖², found by gradient descent."""
    lam = 0.05
    params = {**FROZEN, "rank": 2, "lam": lam}
    simulation = simulated("lora_fair", UNEQUAL, params=params, rounds=4, **how)
    state = simulation.start()
    simulation.train(state, 1)
    base, adaptor = plain.copied(state.values["base"]), plain.copied(state.values["adaptor"])
    p = plain.shares(simulation)
    for round in (2, 3):
        sent = [plain.sgd(adaptor, plain.batches(simulation, k), plain.adapted_loss(base)) for k in CLIENTS]
        adaptor = plain.mean(sent, p)
        for layer in LAYERS:
            a, b = adaptor[f"{layer}.A"], adaptor[f"{layer}.B"]
            wanted = sum(w * s[f"{layer}.B"] @ s[f"{layer}.A"] for w, s in zip(p, sent, strict=True))
            change = torch.zeros_like(b)
            step = 1 / float(torch.linalg.eigvalsh(a @ a.T).max() + lam)
            for _ in range(20_000):
                slope = ((b + change) @ a - wanted) @ a.T + lam * change
                change = change - step * slope
            assert float(slope.abs().max()) < 1e-14
            adaptor[f"{layer}.B"] = b + change
        simulation.train(state, round)
        assert_close(state.values["adaptor"], adaptor, 1e-8)
    assert float(change.abs().max()) > 1e-5


# ----------------------------------------------------------------------------------------------------------- HiLoRA


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_hilora_whose_root_takes_all_rounds_is_flexlora(model):
    how = {"model": model, "batch": 2}
    ours, flexlora = (
        federations.simulate("hilora", params={"root": 1.0}, **how),
        federations.simulate("flexlora", **how),
    )
    end, other = train(ours, 4), train(flexlora, 4)
    assert_close(end.values["base"], other.values["base"], EXACT)
    assert_close(end.values["root"], other.values["adaptor"], EXACT)
    torch.testing.assert_close(served(ours, end), served(flexlora, other), rtol=0, atol=EXACT)


def test_hilora_with_one_cluster_and_no_client_adaptor_serves_fedits_model_if_one_client_takes_part():
    """The root stage only: the product of FedIT's factors is then the mean product."""
    how = {"data": make_data((13,), clusters=1), "participation": 1.0, "rounds": 4}

    def no_lower_tiers(method):
        groups = {**method.groups, **{name: replace(method.groups[name], lr=0.0) for name in ("cluster", "leaf")}}
        return replace(method, groups=groups)

    params = {"root": 0.99, "convolution": "in", "rank": "full"}
    ours = federations.simulate("hilora", params=params, change=no_lower_tiers, **how)
    fedit = federations.simulate("fedit", params={"convolution": "in", "rank": "full"}, **how)
    end, other = train(ours, 3), train(fedit, 3)
    torch.testing.assert_close(served(ours, end), served(fedit, other), rtol=0, atol=EXACT)


def svd_of(sent, weights, layer):
    """Factors of the mean product of rank 1, divided as FlexLoRA does here."""
    product = sum(w * s[f"{layer}.B"] @ s[f"{layer}.A"] for w, s in zip(weights, sent, strict=True))
    u, s, v = torch.linalg.svd(product)
    length, sign = max(1.0, float(s[0]) ** 0.5), float(v[0][v[0].abs().argmax()].sign())
    return {f"{layer}.A": sign * length * v[:1], f"{layer}.B": sign * (u[:, :1] * s[0]) / length}


def averaged(sent, weights):
    result = plain.mean(sent, weights)
    for layer in LAYERS:
        result |= svd_of(sent, weights, layer)
    return result


def overlap(first, second):
    return sum((first[f"{layer}.B"].T @ second[f"{layer}.B"]).square().sum() for layer in LAYERS)


@each_backend
def test_hilora(how):
    """Root, clusters from the directions of B, cluster adaptors, leaves; earlier adaptors are fixed."""
    gamma, decay = 0.7, 0.6
    params = {**FROZEN, "rank": 1, "root": 0.34, "cluster": 0.34, "gamma": gamma, "decay": decay}
    simulation = simulated("hilora", UNEQUAL, params=params, rounds=8, clusters=2, **how)
    state = simulation.start()
    for round in (1, 2):
        simulation.train(state, round)
    base, p = plain.copied(state.values["base"]), plain.shares(simulation)
    root, bases = plain.copied(state.values["root"]), [None] * 5
    for round in (3, 4):
        sent = [plain.sgd(root, plain.batches(simulation, k), plain.adapted_loss(base)) for k in CLIENTS]
        for k, adaptor in enumerate(sent):
            unit = {layer: adaptor[f"{layer}.B"] / adaptor[f"{layer}.B"].norm() for layer in LAYERS}
            old = bases[k] or unit
            bases[k] = {layer: decay * old[layer] + (1 - decay) * unit[layer] for layer in LAYERS}
        root = averaged(sent, p)
        simulation.train(state, round)
        assert_close(state.values["root"], root, EXACT)
    distances = torch.zeros(5, 5).double()
    for i in CLIENTS:
        for j in CLIENTS:
            cosines = [torch.cosine_similarity(bases[i][layer], bases[j][layer], dim=0) for layer in LAYERS]
            distances[i, j] = sum(1 - cosine.square().sum() for cosine in cosines) / 2
    cluster = spectral_clusters(distances, 2).tolist()
    assert state.values["choice"]["cluster"].tolist() == cluster and set(cluster) == {0, 1}

    tiers = [plain.row(state.values["cluster"], c) for c in (0, 1)]
    for round in (5, 6):
        sent = [
            plain.sgd(
                tiers[cluster[k]],
                plain.batches(simulation, k),
                lambda c, x, y: plain.loss(plain.with_adaptors(base, root, c), x, y) + gamma * overlap(root, c),
            )
            for k in CLIENTS
        ]
        for c in (0, 1):
            members = [k for k in CLIENTS if cluster[k] == c]
            weights = p[members] / p[members].sum()
            tiers[c] = averaged([sent[k] for k in members], weights)
        simulation.train(state, round)
        for c in (0, 1):
            assert_close(plain.row(state.values["cluster"], c), tiers[c], EXACT)

    leaves = [plain.row(state.values["leaf"], k) for k in CLIENTS]
    for round in (7, 8):
        for k in CLIENTS:
            tier = tiers[cluster[k]]

            def objective(leaf, x, y, tier=tier):
                both = overlap(root, leaf) + overlap(tier, leaf)
                return plain.loss(plain.with_adaptors(base, root, tier, leaf), x, y) + gamma * both

            leaves[k] = plain.sgd(leaves[k], plain.batches(simulation, k), objective)
        simulation.train(state, round)
        for k in CLIENTS:
            assert_close(plain.row(state.values["leaf"], k), leaves[k], EXACT)
    assert_close(state.values["root"], root, EXACT)


def test_spectral_clustering_finds_separate_groups():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(12) % 3
    points = 5.0 * torch.eye(3)[group] + 0.1 * torch.randn(12, 3, generator=generator)
    labels = spectral_clusters(torch.cdist(points, points), 3)
    assert len(labels.unique()) == 3
    assert torch.equal(labels[:, None] == labels, group[:, None] == group)
    assert torch.equal(k_means(points, 3)[:, None] == k_means(points, 3), group[:, None] == group)
    assert not spectral_clusters(torch.full((4, 4), torch.nan), 2).any()
    assert not spectral_clusters(torch.zeros(1, 1), 3).any()


def test_a_client_whose_factor_is_not_finite_has_no_distances_and_stops_the_clustering():
    factors = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    distances = subspace_distances(factors)
    assert bool((distances.diagonal().abs() < 1e-12).all()) and bool((distances > -1e-12).all())
    assert len(spectral_clusters(distances, 2).unique()) == 2
    for wrong in (torch.nan, torch.inf):
        factors[1, 0, 0] = wrong
        changed = subspace_distances(factors)
        assert bool(changed[1].isnan().all()) and bool(changed[:, 1].isnan().all())
        torch.testing.assert_close(changed[[0, 2, 3]][:, [0, 2, 3]], distances[[0, 2, 3]][:, [0, 2, 3]])
        assert not spectral_clusters(changed, 2).any()


def test_a_client_without_a_part_in_the_root_stage_joins_the_largest_cluster():
    simulation = federations.simulate("hilora", data=make_data((8,) * 12), participation=0.25, rounds=8, clusters=2)
    state = simulation.start()
    for round in range(1, 9):
        simulation.train(state, round)
    present, cluster = state.values["memory"]["present"] > 0, state.values["choice"]["cluster"]
    assert bool(present.any()) and not bool(present.all())
    largest = cluster[present].long().bincount().argmax()
    assert bool((cluster[~present].long() == largest).all())


# --------------------------------------------------------------------------------------------------------- FedLEASE


def test_fedlease_with_one_expert_is_fedit_in_its_second_part(unbounded):
    """The adaptors of the first part are frozen at their start, so that the expert starts as FedIT's adaptor."""
    how = {"switches": {"batches": "fixed"}, "participation": 1.0, "rounds": 4}

    def no_first_part(method):
        return replace(method, groups={**method.groups, "own": replace(method.groups["own"], lr=0.0)})

    ours = federations.simulate("fedlease", params={"experts": 1}, change=no_first_part, **how)
    fedit = federations.simulate("fedit", **how)
    end, other = train(ours, 4), train(fedit, 3)
    assert_close({name: t[0] for name, t in end.values["experts"].items()}, other.values["adaptor"], EXACT)
    torch.testing.assert_close(served(ours, end), served(fedit, other), rtol=0, atol=EXACT)


def mixture_of_experts(base, experts, gate, cluster, x):
    """A model whose layers mix M experts; of the 2M - 1 outputs of the gate, the M largest count."""

    def layer(name, x):
        outputs = torch.nn.functional.linear(x, base[f"{name}.weight"], base[f"{name}.bias"])
        rows = []
        for sample, output in zip(x, outputs, strict=True):
            weights = torch.softmax(gate[name] @ sample, 0)
            top = sorted(range(len(weights)), key=lambda j: -float(weights[j].detach()))[: len(experts)]
            total = sum(weights[j] for j in top)
            for j in top:
                e = experts[j if j < len(experts) else cluster]
                change = e[f"{name}.B"] @ (e[f"{name}.A"] @ sample) + e[f"{name}.bias"]
                output = output + weights[j] / total * change
            rows.append(output)
        return torch.stack(rows)

    return layer("out", torch.relu(layer("hidden", x.flatten(1))))


@each_backend
def test_fedlease(how):
    """Adaptors of each client, clusters by the cosines of B, then experts and gates of the clusters."""
    params = {**FROZEN, "rank": 1, "local": 0.34, "experts": 2}
    simulation = simulated("fedlease", UNEQUAL, params=params, rounds=8, **how)
    state = simulation.start()
    for round in (1, 2):
        simulation.train(state, round)
    base, p = plain.copied(state.values["base"]), plain.shares(simulation)
    own = [plain.row(state.values["own"], k) for k in CLIENTS]
    for round in (3, 4):
        own = [plain.sgd(own[k], plain.batches(simulation, k), plain.adapted_loss(base)) for k in CLIENTS]
        simulation.train(state, round)
        for k in CLIENTS:
            assert_close(plain.row(state.values["own"], k), own[k], EXACT)
    cluster = [int(c) for c in state.values["choice"]["cluster"]]
    distance = {
        (i, j): sum(1 - torch.cosine_similarity(own[i][f"{n}.B"], own[j][f"{n}.B"], dim=0) for n in LAYERS)
        for i in CLIENTS
        for j in CLIENTS
    }
    closest = min(((i, j) for i in CLIENTS for j in range(i)), key=lambda pair: float(distance[pair]))
    assert set(cluster) == {0, 1} and cluster[closest[0]] == cluster[closest[1]] and cluster[0] == 0
    members = [[k for k in CLIENTS if cluster[k] == c] for c in (0, 1)]
    experts = [plain.mean([own[k] for k in of], [1 / len(of)] * len(of)) for of in members]
    gates = [plain.row(state.values["gates"], c) for c in (0, 1)]
    for c in (0, 1):
        assert_close(plain.row(state.values["experts"], c), experts[c], EXACT)
    for round in (5, 6):
        sent = []
        for k in CLIENTS:
            expert, gate = experts[cluster[k]], gates[cluster[k]]
            for x, y in plain.batches(simulation, k):

                def objective(expert, gate, x=x, y=y, k=k):
                    held = [expert if c == cluster[k] else experts[c] for c in (0, 1)]
                    return torch.nn.functional.cross_entropy(mixture_of_experts(base, held, gate, cluster[k], x), y)

                of_expert, of_gate = plain.gradients(objective, expert, gate)
                expert, gate = plain.stepped(expert, of_expert), plain.stepped(gate, of_gate)
            sent.append((expert, gate))
        for c in (0, 1):
            weights = p[members[c]] / p[members[c]].sum()
            experts[c], gates[c] = (plain.mean([sent[k][at] for k in members[c]], weights) for at in (0, 1))
        simulation.train(state, round)
        for c in (0, 1):
            assert_close(plain.row(state.values["experts"], c), experts[c], EXACT)
            assert_close(plain.row(state.values["gates"], c), gates[c], EXACT)


def test_the_number_of_clusters_follows_from_the_silhouette():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(12) % 3
    points = 5.0 * torch.eye(3)[group] + 0.1 * torch.randn(12, 3, generator=generator)
    labels = best_linkage(torch.cdist(points, points), 8)
    assert len(labels.unique()) == 3 and torch.equal(labels[:, None] == labels, group[:, None] == group)
    assert silhouette(torch.cdist(points, points), labels) > 0.9
    assert len(best_linkage(torch.cdist(points, points), 2).unique()) == 2
    assert not best_linkage(torch.zeros(2, 2), 8).any() and not best_linkage(torch.full((5, 5), torch.nan), 8).any()


def test_average_linkage_is_that_of_scipy():
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    tree = linkage(squareform(distances.numpy()), "average")
    numbers = (3, 2, 9)
    for number, labels in zip(numbers, average_linkage(distances, numbers), strict=True):
        expected = torch.from_numpy(fcluster(tree, number, "maxclust"))
        assert len(labels.unique()) == number
        assert torch.equal(labels[:, None] == labels, expected[:, None] == expected)


def test_silhouettes_are_those_of_scikit_learn():
    from sklearn.metrics import silhouette_score

    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(3))
    distances = torch.cdist(points, points)
    for labels in average_linkage(distances, (2, 3, 7)):
        expected = silhouette_score(distances.numpy(), labels.numpy(), metric="precomputed")
        assert silhouette(distances, labels) == pytest.approx(float(expected), abs=1e-6)

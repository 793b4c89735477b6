"""Classic methods against their equations, as plain loops over five clients (see plain_loops.py)."""

from __future__ import annotations

import plain_loops as plain
import pytest
import torch
import torch.nn.functional as F
from federations import CLASSES, assert_close, served
from plain_loops import CLIENTS, EXACT, LR, UNEQUAL, each_backend, simulated

BODY, HEAD = ("hidden.weight", "hidden.bias"), ("out.weight", "out.bias")
each_participation = pytest.mark.parametrize("participation", [1.0, 0.6])


def zeros(w):
    return {name: torch.zeros_like(t) for name, t in w.items()}


def added(first, second, factor=1.0):
    return {name: first[name] + factor * second[name] for name in first}


def cohort_of(simulation, round):
    """The clients of a round, and their weights p(k)."""
    cohort = sorted(simulation.cohort(round).tolist())
    count = [len(plain.samples(simulation, k)[1]) for k in cohort]
    return cohort, [n / sum(count) for n in count]


def head(w, z):
    return F.linear(z, w["out.weight"], w["out.bias"])


# ------------------------------------------------------------------------------------------------------------ drift


@each_backend
@each_participation
def test_scaffold(participation, how):
    """Algorithm 1 with option II: y - lr (g - c_k + c), c_k - c + (x - y)/(H lr), c + M/K Σ p(k) (c_k' - c_k)."""
    simulation = simulated("scaffold", UNEQUAL, participation=participation, epochs=2, **how)
    state = simulation.start()
    x = plain.copied(state.values["base"])
    c, controls = zeros(x), [zeros(x) for _ in CLIENTS]
    for round in (1, 2, 3):
        cohort, p = cohort_of(simulation, round)
        assert len(cohort) == participation * 5
        sent, changes = [], []
        for k in cohort:
            y, data = x, 2 * plain.batches(simulation, k)
            for batch in data:
                (g,) = plain.gradients(lambda w, batch=batch: plain.loss(w, *batch), y)
                y = {name: y[name] - LR * (g[name] - controls[k][name] + c[name]) for name in y}
            new = {n: controls[k][n] - c[n] + (x[n] - y[n]) / (len(data) * LR) for n in y}
            changes.append(added(new, controls[k], -1.0))
            sent.append(y)
            controls[k] = new
        x, c = plain.mean(sent, p), added(c, plain.mean(changes, p), participation)
        simulation.train(state, round)
        assert_close(state.values["base"], x, EXACT)
        assert_close(state.values["control"], c, EXACT)
        for k in CLIENTS:
            assert_close(plain.row(state.values["client_control"], k), controls[k], EXACT)
    assert len({float(control["out.bias"][0]) for control in controls}) >= 4


@each_backend
@each_participation
def test_feddyn(participation, how):
    """Algorithm 1: f(w) - ⟨g_k, w⟩ + α/2 ‖w - w'‖², g_k - α (w_k - w'), h - α M/K (w̄ - w'), and w̄ - h/α."""
    alpha = 0.3
    simulation = simulated("feddyn", UNEQUAL, participation=participation, params={"alpha": alpha}, epochs=2, **how)
    state = simulation.start()
    received = plain.copied(state.values["base"])
    h, slopes = zeros(received), [zeros(received) for _ in CLIENTS]
    for round in (1, 2, 3):
        cohort, p = cohort_of(simulation, round)
        sent = []
        for k in cohort:

            def objective(w, x, y, g=slopes[k], start=received):
                distance = sum((w[name] - start[name]).square().sum() for name in w)
                return plain.loss(w, x, y) - sum((g[name] * w[name]).sum() for name in w) + alpha / 2 * distance

            w = plain.sgd(received, 2 * plain.batches(simulation, k), objective)
            slopes[k] = added(slopes[k], added(w, received, -1.0), -alpha)
            sent.append(w)
        average = plain.mean(sent, p)
        h = added(h, added(average, received, -1.0), -alpha * participation)
        received = added(average, h, -1 / alpha)
        simulation.train(state, round)
        assert_close(state.values["base"], received, EXACT)
        assert_close(state.values["memory"], h, EXACT)
        for k in CLIENTS:
            assert_close(plain.row(state.values["gradient"], k), slopes[k], EXACT)


# ------------------------------------------------------------------------------------------------------------ heads


@each_backend
def test_fedrod(how):
    """Body and shared head on the balanced softmax loss, the private head on the sum of both logits."""
    simulation = simulated("fedrod", UNEQUAL, **how)
    state = simulation.start()
    w = plain.copied(state.values["base"])
    own = [zeros({name: w[name] for name in HEAD}) for _ in CLIENTS]
    for round in (1, 2):
        sent = []
        for k in CLIENTS:
            v, counts = w, torch.bincount(plain.samples(simulation, k)[1], minlength=CLASSES).double()
            assert not counts.all(), "no client lacks a class"
            for x, y in plain.batches(simulation, k):

                def balanced(v, x=x, y=y, counts=counts):
                    powers = counts * plain.net(v, x).exp()
                    return -(powers.gather(1, y[:, None])[:, 0] / powers.sum(1)).log().mean()

                z, shared = plain.features(v, x), plain.net(v, x)
                (of_v,) = plain.gradients(balanced, v)
                (of_own,) = plain.gradients(lambda h, z=z, s=shared, y=y: F.cross_entropy(s + head(h, z), y), own[k])
                v, own[k] = plain.stepped(v, of_v), plain.stepped(own[k], of_own)
            sent.append(v)
        w = plain.mean(sent, plain.shares(simulation))
        simulation.train(state, round)
        assert_close(state.values["base"], w, EXACT)
        for k in CLIENTS:
            assert_close(plain.row(state.values["head"], k), own[k], EXACT)
    x = plain.inputs_of_test(simulation)
    for k, logits in enumerate(served(simulation, state)):
        torch.testing.assert_close(logits, plain.net(w, x) + head(own[k], plain.features(w, x)), rtol=0, atol=EXACT)


@each_backend
def test_fedbabu(how):
    """Two rounds of the body under the random head, then two rounds of SGD on a copy of body and head."""
    simulation = simulated("fedbabu", UNEQUAL, params={"after": 0.5}, rounds=4, **how)
    state = simulation.start()
    body, fixed = plain.copied(state.values["base"]), plain.copied(state.values["head"])
    assert set(body) == set(BODY) and set(fixed) == set(HEAD)

    def under_head(body, x, y):
        return plain.loss(body | fixed, x, y)

    for round in (1, 2):
        of_body = [plain.sgd(body, plain.batches(simulation, k), under_head) for k in CLIENTS]
        body = plain.mean(of_body, plain.shares(simulation))
        simulation.train(state, round)
        assert_close(state.values["base"], body, EXACT)
    tuned = [body | fixed for _ in CLIENTS]
    for round in (3, 4):
        tuned = [plain.sgd(w, plain.batches(simulation, k)) for k, w in zip(CLIENTS, tuned, strict=True)]
        simulation.train(state, round)
        for k in CLIENTS:
            assert_close(added(body | fixed, plain.row(state.values["difference"], k)), tuned[k], EXACT)
    assert_close(state.values["base"] | state.values["head"], body | fixed, EXACT)


# --------------------------------------------------------------------------------------------- memory and meta steps


@each_backend
@pytest.mark.parametrize("neighbours", [3, 30])
def test_knn_per(neighbours, how):
    """λ Σ_i q_i [y_i = c] + (1 - λ) p_c(x), q_i ∝ exp(-‖z - z_i‖²/d) over the nearest training samples."""
    lam = 0.3
    simulation = simulated("knn_per", UNEQUAL, params={"lam": lam, "neighbours": neighbours}, **how)
    state = simulation.start()
    w = plain.copied(state.values["base"])
    w = plain.mean([plain.sgd(w, plain.batches(simulation, k)) for k in CLIENTS], plain.shares(simulation))
    simulation.train(state, 1)
    assert_close(state.values["base"], w, EXACT)
    x = plain.inputs_of_test(simulation)
    for k, outputs in enumerate(served(simulation, state)):
        stored_x, labels = plain.samples(simulation, k)
        keys = plain.features(w, stored_x)
        for at, z in enumerate(plain.features(w, x)):
            distance = [float((z - key).square().sum()) / len(z) for key in keys]
            nearest = sorted(range(len(labels)), key=distance.__getitem__)[:neighbours]
            weights = torch.tensor([-distance[i] for i in nearest], dtype=torch.float64).exp()
            votes = torch.zeros(CLASSES, dtype=torch.float64)
            for i, weight in zip(nearest, weights / weights.sum(), strict=True):
                votes[labels[i]] += weight
            expected = lam * votes + (1 - lam) * plain.net(w, x[at][None]).softmax(-1)[0]
            torch.testing.assert_close(outputs[at].exp(), expected, rtol=0, atol=EXACT)


@each_backend
@pytest.mark.parametrize("variant", ["per_fedavg", "per_fedavg_first_order"])
def test_per_fedavg(variant, how):
    """w - lr (g - α ∇²f(w; D) g) with g = ∇f(w - α ∇f(w; D); D'); a client predicts after one step on its samples."""
    alpha, delta = 0.4, 1e-3
    simulation = simulated(variant, UNEQUAL, params={"alpha": alpha}, **how)
    state = simulation.start()
    w = plain.copied(state.values["base"])

    def gradient(w, data):
        return plain.gradients(lambda w: plain.loss(w, *data), w)[0]

    sent, errors = [], []
    for k in CLIENTS:
        v = w
        for x, y in plain.batches(simulation, k):
            first, second = (x[0::2], y[0::2]), (x[1::2], y[1::2])
            if len(x) == 1:
                second = first
            g = gradient(added(v, gradient(v, first), -alpha), second)
            update = g
            if variant == "per_fedavg":
                ahead, behind = (gradient(added(v, g, sign * delta), first) for sign in (1, -1))
                product = {name: (ahead[name] - behind[name]) / (2 * delta) for name in v}
                exact = hessian_product(v, first, g)
                errors.append(max(float((product[name] - exact[name]).abs().max()) for name in v))
                update = added(g, product, -alpha)
            v = plain.stepped(v, update)
        sent.append(v)
    w = plain.mean(sent, plain.shares(simulation))
    simulation.train(state, 1)
    assert_close(state.values["base"], w, EXACT)
    assert max(errors, default=0.0) < 1e-4
    x = plain.inputs_of_test(simulation)
    for k, logits in enumerate(served(simulation, state)):
        adapted = added(w, gradient(w, plain.samples(simulation, k)), -alpha)
        torch.testing.assert_close(logits, plain.net(adapted, x), rtol=0, atol=EXACT)
    assert_close(state.values["base"], w, EXACT)


def hessian_product(w, data, vector):
    """∇²f(w; data) · vector by two backward passes."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in w.items()}
    first = torch.autograd.grad(plain.loss(leaves, *data), list(leaves.values()), create_graph=True)
    inner = sum((g * vector[name]).sum() for name, g in zip(leaves, first, strict=True))
    return dict(zip(leaves, torch.autograd.grad(inner, list(leaves.values())), strict=True))


@each_backend
@each_participation
def test_fedproto(participation, how):
    """loss + λ mean_j (z_j - P_yj)²; P_c is the mean of the features of all samples of class c in the last round."""
    lam = 2.0
    simulation = simulated("fedproto", UNEQUAL, participation=participation, params={"lam": lam}, **how)
    state = simulation.start()
    own = [plain.row(state.values["base"], k) for k in CLIENTS]
    prototypes: dict[int, torch.Tensor] = {}
    for round in (1, 2, 3):
        collected: dict[int, list[torch.Tensor]] = {}
        cohort, _ = cohort_of(simulation, round)
        for k in cohort:

            def objective(w, x, y, prototypes=prototypes):
                terms = [
                    (z - prototypes[c]).square().mean()
                    for z, c in zip(plain.features(w, x), y.tolist(), strict=True)
                    if c in prototypes
                ]
                return plain.loss(w, x, y) + lam * sum(terms, torch.tensor(0.0)) / len(y)

            own[k] = plain.sgd(own[k], plain.batches(simulation, k), objective)
            x, y = plain.samples(simulation, k)
            for z, c in zip(plain.features(own[k], x), y.tolist(), strict=True):
                collected.setdefault(c, []).append(z)
        prototypes = {c: torch.stack(z).mean(0) for c, z in collected.items()}
        simulation.train(state, round)
        for k in CLIENTS:
            assert_close(plain.row(state.values["base"], k), own[k], EXACT)
        sums, share = state.values["prototypes"]["sum"], state.values["prototypes"]["share"]
        assert {c for c in range(CLASSES) if share[c] > 0} == set(prototypes)
        for c, prototype in prototypes.items():
            torch.testing.assert_close(sums[c] / share[c], prototype, rtol=0, atol=EXACT)

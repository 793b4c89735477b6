"""Methods against their equations: a few rounds on five clients, with the equations written out as plain loops.

The loops use PyTorch only. They take the initial values from the simulation, and the batches in stored order. If a
paper weighs its clients equally, the clients have equal numbers of samples.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from federations import assert_close, served
from plain_loops import (
    CLIENTS,
    EQUAL,
    EXACT,
    FROZEN,
    LR,
    UNEQUAL,
    batches,
    copied,
    each_backend,
    features,
    gradients,
    inputs_of_test,
    loss,
    mean,
    net,
    row,
    samples,
    sgd,
    shares,
    simulated,
    stepped,
    with_adaptors,
)

# ---------------------------------------------------------------------------------------------- momentum clustering


@each_backend
@pytest.mark.parametrize("participation", [1.0, 0.6])
def test_momentum_clustering(participation, how):
    """m_k = β m_k + (1-β) g_k(x_k), threshold clustering of the momenta, x_k = x_k - lr v_c(k), on a server.

    The paper has this with all clients and equal weights. Our form for rounds: the last momenta of all clients that
    have taken part are clustered with the weights p(k) of their rounds. A round is one full batch, so that a client has
    one gradient. The thresholds scale with the momenta.
    """
    beta, clusters, data = 0.9, 2, EQUAL if participation == 1 else UNEQUAL
    task = {"batch": 64, "clusters": clusters, "participation": participation, "rounds": 6}
    simulation = simulated("momentum_clustering", data, params={"momentum": beta}, **task, **how)
    state = simulation.start()
    x = [row(state.values["base"], k) for k in CLIENTS]
    names, momenta, size, centres, assigned = sorted(x[0]), {}, {}, [], set()
    for round in range(1, 7):
        cohort = sorted(simulation.cohort(round).tolist())
        assert len(cohort) == participation * len(CLIENTS)
        count = {k: len(samples(simulation, k)[1]) for k in cohort}
        for k in cohort:
            (of_k,) = gradients(lambda w, k=k: loss(w, *samples(simulation, k)), x[k])
            gradient = torch.cat([of_k[name].flatten() for name in names])
            momenta[k] = beta * momenta[k] + (1 - beta) * gradient if k in momenta else gradient
            size[k] = count[k] / sum(count.values())
        p = {k: size[k] / sum(size.values()) for k in momenta}
        if not centres:
            middle = sum(momenta.values()) / len(momenta)
            centres = [max(momenta.values(), key=lambda m: float((m - middle).norm()))]
            while len(centres) < clusters:
                centres.append(max(momenta.values(), key=lambda m: min(float((m - v).norm()) for v in centres)))
        for _ in range(10):
            for c, v in enumerate(centres):
                distance = {k: (m - v).norm() for k, m in momenta.items()}
                threshold = torch.stack(list(distance.values())).quantile(1 / clusters)
                centres[c] = sum(p[k] * (m if distance[k] <= threshold else v) for k, m in momenta.items())
        for k in cohort:
            nearest = min(range(clusters), key=lambda c: float((momenta[k] - centres[c]).norm()))
            assigned.add(nearest)
            parts = centres[nearest].split([x[k][name].numel() for name in names])
            x[k] = {n: x[k][n] - LR * v.reshape(x[k][n].shape) for n, v in zip(names, parts, strict=True)}
        simulation.train(state, round)
        for k in CLIENTS:
            assert_close(row(state.values["base"], k), x[k], EXACT)
    assert len(assigned) == clusters and len(momenta) == len(CLIENTS)
    assert not torch.equal(state.values["base"]["out.bias"][0], state.values["base"]["out.bias"][1])


# ------------------------------------------------------------------------------------------------------------- IFCA


@each_backend
def test_ifca(how):
    """Each client trains the model with the smallest training loss; plain means within the clusters (algorithm 1)."""
    simulation = simulated("ifca", EQUAL, clusters=2, **how)
    state = simulation.start()
    models = [row(state.values["base"], c) for c in range(2)]
    choice = [min(range(2), key=lambda c: float(loss(models[c], *samples(simulation, k)))) for k in CLIENTS]
    trained = [sgd(models[c], batches(simulation, k)) for k, c in enumerate(choice)]
    simulation.train(state, 1)
    assert state.values["choice"]["cluster"].tolist() == choice and len(set(choice)) == 2
    for c in range(2):
        members = [w for w, chosen in zip(trained, choice, strict=True) if chosen == c]
        expected = mean(members, [1 / len(members)] * len(members))
        assert_close(row(state.values["base"], c), expected, EXACT)


@each_backend
def test_ifca_with_a_shared_body(how):
    """Weight sharing: a client picks a head; all clients train the body, those that chose a head train this head."""
    simulation = simulated("ifca_shared_body", EQUAL, clusters=2, **how)
    state = simulation.start()
    body, heads = copied(state.values["base"]), [row(state.values["heads"], c) for c in range(2)]
    assert set(body) == {"hidden.weight", "hidden.bias"} and set(heads[0]) == {"out.weight", "out.bias"}
    models = [body | head for head in heads]
    choice = [min(range(2), key=lambda c: float(loss(models[c], *samples(simulation, k)))) for k in CLIENTS]
    trained = [sgd(models[c], batches(simulation, k)) for k, c in enumerate(choice)]
    simulation.train(state, 1)
    assert state.values["choice"]["cluster"].tolist() == choice and len(set(choice)) == 2
    assert_close(state.values["base"], {n: sum(w[n] for w in trained) / 5 for n in body}, EXACT)
    for c in range(2):
        members = [w for w, chosen in zip(trained, choice, strict=True) if chosen == c]
        expected = {name: sum(w[name] for w in members) / len(members) for name in heads[c]}
        assert_close(row(state.values["heads"], c), expected, EXACT)


# ---------------------------------------------------------------------------------------------------------- PFL-MoE


@each_backend
def test_pfl_moe(how):
    """FedAvg, then one round of fine-tuning without a quarter of the samples, then one of the gate on this quarter."""
    simulation = simulated("pfl_moe", UNEQUAL, params={"after": 0.5}, rounds=4, router_lr=0.5, **how)
    state = simulation.start()
    w = copied(state.values["base"])
    for round in (1, 2):
        w = mean([sgd(w, batches(simulation, k)) for k in CLIENTS], shares(simulation))
        simulation.train(state, round)
    assert_close(state.values["base"], w, EXACT)
    simulation.train(state, 3)
    mean_loss, _ = simulation.train(state, 4)
    assert_close(state.values["base"], w, EXACT)
    gate_losses = []
    for k in CLIENTS:
        data = batches(simulation, k)
        tuned = sgd(w, [(x[:3], y[:3]) for x, y in data])  # the fourth sample of a batch is held out
        difference = row(state.values["difference"], k)
        assert_close({n: w[n] + d for n, d in difference.items()}, tuned, EXACT)

        def gate_loss(gate, x, y, tuned=tuned):
            share = torch.sigmoid(F.linear(x.flatten(1), gate["weight"], gate["bias"]))
            return F.cross_entropy(share * net(tuned, x) + (1 - share) * net(w, x), y)

        gate = {"weight": torch.zeros(1, 16).double(), "bias": torch.zeros(1).double()}
        losses = []
        for x, y in [(x[3:], y[3:]) for x, y in data if len(x) == 4]:
            losses.append(float(gate_loss(gate, x, y)))
            (gradient,) = gradients(lambda gate, x=x, y=y: gate_loss(gate, x, y), gate)
            gate = stepped(gate, gradient, lr=2 * 0.5)  # two outputs instead of one sigmoid
        own = row(state.values["gate"], k)
        logit = {part: own[f"mix.{part}"][1:] - own[f"mix.{part}"][:1] for part in gate}
        assert_close(logit, gate, EXACT)
        assert float(gate["weight"].abs().max()) > 1e-4
        gate_losses.append(sum(losses) / len(losses))
    assert float(mean_loss) == pytest.approx(
        float(shares(simulation) @ torch.tensor(gate_losses, dtype=torch.float64)), abs=EXACT
    )


# ---------------------------------------------------------------------------------------- adaptors on a frozen base


@each_backend
def test_flora(how):
    """Each client draws its own A and starts with B = 0; W ← W + Σ p_k B_k A_k changes by more than rank r."""
    simulation = simulated("flora_stacking", UNEQUAL, params={**FROZEN, "rank": 1}, rounds=4, **how)
    state = simulation.start()
    simulation.train(state, 1)
    for round in (2, 3):
        w, expected = copied(state.values["base"]), copied(state.values["base"])
        for k, p in zip(CLIENTS, shares(simulation), strict=True):
            fresh = {name: torch.zeros_like(t) for name, t in state.values["B"].items()}
            start = row(state.values["A"], k) | fresh
            adaptor = sgd(start, batches(simulation, k), lambda a, x, y, w=w: loss(with_adaptors(w, a), x, y))
            alone = with_adaptors({name: torch.zeros_like(t) for name, t in w.items()}, adaptor)
            expected = {name: t + p * alone[name] for name, t in expected.items()}
        before = state.values["A"]["hidden.A"].clone()
        simulation.train(state, round)
        assert_close(state.values["base"], expected, EXACT)
        change = state.values["base"]["hidden.weight"] - w["hidden.weight"]
        assert int(torch.linalg.matrix_rank(change, atol=1e-9)) > 1, "clients have the same A"
        drawn = torch.cat([before, state.values["A"]["hidden.A"]]).flatten(1)
        assert len(drawn.unique(dim=0)) == 10, "a client's A was not drawn anew"
        assert not any(t.any() for t in state.values["B"].values())


@each_backend
def test_perada(how):
    """v_k on f(v) + λ‖v - w‖², then a copy of w on f(w); plain mean. Norm and last layer are trained as a whole.

    v_k is a model of its own, so that its running statistics are, too. Those of w are averaged.
    """
    lam = 0.7
    params = {**FROZEN, "lam": lam, "rank": 1}
    simulation = simulated("perada", EQUAL, model="batch_norm", params=params, rounds=4, **how)
    state = simulation.start()
    simulation.train(state, 1)
    base, part = copied(state.values["base"]), ("hidden.A", "hidden.B", "hidden.bias")

    def outputs(change, running, x, training=True):
        """With the statistics of the batch, which also move `running` in place; or with `running`."""
        tuned = with_adaptors(base, {name: change[name] for name in part})
        tuned |= {name: tuned[name] + change[name] for name in change if name not in part}
        hidden = F.linear(x.flatten(1), tuned["hidden.weight"], tuned["hidden.bias"])
        scale, shift, statistics = (
            tuned["norm.weight"],
            tuned["norm.bias"],
            (running["norm.mean"], running["norm.variance"]),
        )
        hidden = F.batch_norm(hidden, *statistics, scale, shift, training=training, momentum=0.1)
        return F.linear(torch.relu(hidden), tuned["out.weight"], tuned["out.bias"])

    def check_predictions():
        x = inputs_of_test(simulation)
        for k, logits in enumerate(served(simulation, state)):
            expected = outputs(own[k], own_running[k], x, training=False)
            torch.testing.assert_close(logits, expected, rtol=0, atol=EXACT)

    own = [row(state.values["private"], k) for k in CLIENTS]
    own_running = [copied(state.values["statistics"]) for _ in CLIENTS]
    check_predictions()
    for round in (2, 3):
        w, sent, running_sent = copied(state.values["shared"]), [], []
        assert set(w) == {*part, "norm.weight", "norm.bias", "out.weight", "out.bias"}
        for k in CLIENTS:
            running = copied(state.values["statistics"])

            def plain(v, x, y, running=running):
                return F.cross_entropy(outputs(v, running, x), y)

            def pulled(v, x, y, w=w, k=k):
                distance = sum((v[name] - w[name]).square().sum() for name in v)
                return F.cross_entropy(outputs(v, own_running[k], x), y) + lam * distance

            own[k] = sgd(own[k], batches(simulation, k), pulled)
            sent.append(sgd(w, batches(simulation, k), plain))
            running_sent.append(running)
        simulation.train(state, round)
        assert_close(state.values["shared"], mean(sent, [1 / 5] * 5), EXACT)
        assert_close(state.values["statistics"], mean(running_sent, [1 / 5] * 5), EXACT)
        for k in CLIENTS:
            assert_close(row(state.values["private"], k), own[k], EXACT)
        check_predictions()


@each_backend
def test_dual_lora(how):
    """W + B A + B_k A_k in one SGD step; B A is averaged. The equations of the simple form, not of FDLoRA."""
    simulation = simulated("dual_lora", UNEQUAL, params={**FROZEN, "rank": 1}, rounds=4, **how)
    state = simulation.start()
    simulation.train(state, 1)
    base, shared = copied(state.values["base"]), copied(state.values["shared"])
    sent, own = [], []
    for k in CLIENTS:
        g, p = shared, row(state.values["private"], k)
        for x, y in batches(simulation, k):
            of_g, of_p = gradients(lambda g, p, x=x, y=y: loss(with_adaptors(base, g, p), x, y), g, p)
            g, p = stepped(g, of_g), stepped(p, of_p)
        sent.append(g)
        own.append(p)
    simulation.train(state, 2)
    assert_close(state.values["shared"], mean(sent, shares(simulation)), EXACT)
    for k in CLIENTS:
        assert_close(row(state.values["private"], k), own[k], EXACT)


# ------------------------------------------------------------------------------------------------------------- APFL


@each_backend
def test_apfl(how):
    """w - lr ∇f(w), v - lr α ∇f(v̄), and α - lr ⟨v - w, ∇f(v̄)⟩ on the first batch of a round (algorithm 1)."""
    simulation = simulated("apfl", UNEQUAL, epochs=2, **how)
    state = simulation.start()
    own, alphas = [row(state.values["personal"], k) for k in CLIENTS], [0.5] * 5
    for round in (1, 2):
        shared, sent = copied(state.values["base"]), []
        for k in CLIENTS:
            w, v = shared, own[k]
            for step, (x, y) in enumerate(2 * batches(simulation, k)):
                mixed = {name: alphas[k] * v[name] + (1 - alphas[k]) * w[name] for name in w}
                (of_w,) = gradients(lambda w, x=x, y=y: loss(w, x, y), w)
                (of_mixed,) = gradients(lambda w, x=x, y=y: loss(w, x, y), mixed)
                slope = sum(float(((v[name] - w[name]) * of_mixed[name]).sum()) for name in w)
                w, v = stepped(w, of_w), stepped(v, of_mixed, lr=LR * alphas[k])
                if step == 0:
                    alphas[k] = min(1.0, max(0.0, alphas[k] - LR * slope))
            sent.append(w)
            own[k] = v
        simulation.train(state, round)
        assert_close(state.values["base"], mean(sent, shares(simulation)), EXACT)
        assert_close({"α": state.values["alpha"]["alpha"]}, {"α": torch.tensor(alphas, dtype=torch.float64)}, EXACT)
        for k in CLIENTS:
            assert_close(row(state.values["personal"], k), own[k], EXACT)
    assert len(set(alphas)) == 5


# ----------------------------------------------------------------------------------------------------------- FedDBE


@each_backend
@pytest.mark.parametrize("momentum", [1.0, 0.4])
def test_feddbe(momentum, how):
    """The consensus of all clients' running means before round 1, then rounds with b_k and the term (algorithm 1)."""
    kappa = 3.0
    simulation = simulated("feddbe", UNEQUAL, params={"kappa": kappa, "share": momentum}, **how)
    state = simulation.start()
    w, p = copied(state.values["base"]), shares(simulation)
    b = [{"b": torch.zeros(5).double()} for _ in CLIENTS]

    def pass_of(k, w, b, consensus):
        seen = torch.zeros(5).double()
        for x, y in batches(simulation, k):

            def objective(w, b, x=x, y=y, seen=seen):
                f = features(w, x)
                if consensus is None:
                    return F.cross_entropy(F.linear(f, w["out.weight"], w["out.bias"]), y)
                term = ((1 - momentum) * seen + momentum * f.mean(0) - consensus).square().mean() / 2
                return F.cross_entropy(F.linear(f + b["b"], w["out.weight"], w["out.bias"]), y) + kappa * term

            of_w, of_b = gradients(objective, w, b)
            seen = (1 - momentum) * seen + momentum * features(w, x).mean(0)
            w, b = stepped(w, of_w), stepped(b, of_b)
        return w, b, seen

    consensus = sum(p_k * pass_of(k, w, b[k], None)[2] for k, p_k in enumerate(p))
    torch.testing.assert_close(state.values["consensus"]["mean"], consensus, rtol=0, atol=EXACT)
    for round in (1, 2):
        results = [pass_of(k, w, b[k], consensus) for k in CLIENTS]
        w, b = mean([result[0] for result in results], p), [result[1] for result in results]
        simulation.train(state, round)
        assert_close(state.values["base"], w, EXACT)
        for k in CLIENTS:
            assert_close(row(state.values["bias"], k), b[k], EXACT)
            assert bool(b[k]["b"].any())

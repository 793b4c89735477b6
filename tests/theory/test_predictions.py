"""Measure on the engine what theory predicts exactly.

- Mismatch: a fixed wrong route leaves an error that can be computed.
- Variance: separate models have C times the gradient variance of a shared model.
- Common part: base and adaptors of FLoRAL share what all clusters have in common in a fixed ratio.

Each test declares its method by groups and a prediction. The engine does local steps, aggregation and server steps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from federations import make_data, simulate, train

from floral.core.spec import Group, Method, Routing, Scope

OUTPUTS = 2


def regression(sizes, x, y, clusters):
    """A federation in memory whose client k holds the rows (x[k], y[k])."""
    data = make_data(sizes, shape=x.shape[2:], clusters=clusters, regression=True, outputs=y.shape[-1])
    counts = {**data.counts, "train": np.array(sizes), "validation": np.zeros(len(sizes), int)}
    starts = np.cumsum([0, *sizes[:-1]])
    index = np.zeros((len(sizes), max(sizes)), np.int64)
    for k, size in enumerate(sizes):
        index[k, :size] = starts[k] + np.arange(size)
    return replace(
        data,
        train_x=np.concatenate([x[k, :size] for k, size in enumerate(sizes)]),
        train_y=np.concatenate([y[k, :size] for k, size in enumerate(sizes)]),
        rows={**data.rows, "train": index},
        counts=counts,
    )


# ------------------------------------------------------------- error of a fixed mismatch of the routes


@pytest.mark.parametrize("epochs", [1, 5])
@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2, 0.4])
def test_a_fixed_mismatch_leaves_the_error_eps_squared_times_the_gap(eps, epochs):
    """w_c → (1-ε) W_c + ε W_c', so ‖w_c - W_c‖² = ε² ‖W_c - W_c'‖², for any number of local steps.

    Every client trains both models on its own samples, whose Gram matrix is n·I. In the aggregation, the other
    cluster's clients have the share ε of each cluster's weight.
    """
    clients, d = 6, 4
    random = np.random.default_rng(0)
    truth = random.normal(size=(2, d, OUTPUTS))
    x = np.stack([np.sqrt(8) * np.linalg.qr(random.normal(size=(8, d)))[0] for _ in range(clients)])
    y = np.stack([np.tile(x[k] @ truth[k % 2], 2) for k in range(clients)])  # once per model
    route = torch.tensor([[1 - eps, eps], [eps, 1 - eps]])[torch.arange(clients) % 2].double().log()

    def predict(view, x, noise, mask):
        return torch.einsum("bi,cio->bco", x, view["base"]["weight"]).flatten(1), {}

    method = Method(
        groups={
            "base": Group(scope=Scope.CLUSTERED, init=lambda: {"weight": torch.zeros(2, d, OUTPUTS)}, lr=0.5),
            "route": Group(scope=Scope.PRIVATE, init=lambda: {"log": route}, fixed=True),
        },
        predict=predict,
        routing=Routing(log_route=lambda view: view["route"]["log"]),
    )
    data = regression((8,) * clients, x.astype(np.float64), y.astype(np.float64), 2)
    simulation = simulate(
        data=data,
        change=lambda _: method,
        participation=1.0,
        batch=8,
        epochs=epochs,
        rounds=200,
        backend="vmap",
        chunk=4,
    )
    learned = train(simulation, 200 // epochs).values["base"]["weight"]
    gap = ((truth[0] - truth[1]) ** 2).sum()
    for c in range(2):
        error = float(((learned[c] - torch.from_numpy(truth[c])) ** 2).sum())
        assert error == pytest.approx(eps**2 * gap, rel=1e-6)
    # With exact routes both models reach their optimum.
    if eps == 0.4:
        exact = torch.tensor([[1.0, 1e-44], [1e-44, 1.0]], dtype=torch.float64)[torch.arange(clients) % 2].log()
        right = replace(
            method, groups={**method.groups, "route": replace(method.groups["route"], init=lambda: {"log": exact})}
        )
        simulation = simulate(data=data, change=lambda _: right, participation=1.0, batch=8, epochs=epochs, rounds=200)
        learned = train(simulation, 200 // epochs).values["base"]["weight"]
        torch.testing.assert_close(learned, torch.from_numpy(truth), rtol=0, atol=1e-8)


# --------------------------------------------------------------- variance of the base's gradient


def streaming(scope, clusters, d, member=None):
    """Linear regression to zero targets. In every step the engine draws a new batch of 4 inputs."""
    start = torch.linspace(-1, 1, d)

    def predict(view, x, noise, mask):
        return (2 * noise["x"] - 1) @ view["base"]["weight"][:, None], {}

    holders = (clusters,) if scope is Scope.CLUSTERED else ()
    base = Group(scope=scope, init=lambda: {"weight": start.expand(*holders, d).clone()}, lr=1.0)
    return Method(
        groups={"base": base}, predict=predict, noise={"x": ("batch", d)}, routing=Routing(cluster_of_client=member)
    )


@pytest.mark.parametrize("clusters", [2, 4])
def test_separate_models_have_c_times_the_gradient_variance_of_a_shared_base(clusters):
    """V_separate / V_shared = C for balanced clusters with equal variances.

    The variances are taken over 300 batches, all from the same initial model.
    In every batch, the step of the shared model is exactly Σ_c p(c) times the separate models' steps.
    """
    clients, d, rounds = 8, 6, 300
    zero = np.zeros((clients, 4, 1))
    data = regression((4,) * clients, zero, zero, clusters)
    member = torch.arange(clients) % clusters
    steps = {}
    for name, method in (
        ("shared", streaming(Scope.SHARED, clusters, d)),
        ("separate", streaming(Scope.CLUSTERED, clusters, d, member)),
    ):
        simulation = simulate(
            data=data, change=lambda _, m=method: m, participation=1.0, rounds=rounds, backend="vmap", chunk=8
        )
        frozen = simulation.start().values["base"]["weight"]
        changes = []
        for round in range(1, rounds + 1):
            state = simulation.start()
            simulation.train(state, round)
            changes.append(state.values["base"]["weight"] - frozen)
        steps[name] = torch.stack(changes)
    torch.testing.assert_close(steps["separate"].mean(1), steps["shared"], rtol=0, atol=1e-12)
    shared = steps["shared"].var(0).sum()
    separate = steps["separate"].var(0).sum(-1).mean()
    assert float(separate / shared) == pytest.approx(clusters, rel=0.15)


def test_with_unequal_clients_the_variance_follows_the_effective_number_of_clients():
    """V_c = s / N_eff(c) with N_eff(c) = 1 / Σ_k p(k|c)². Every client takes all its samples as one batch."""
    clusters, d, rounds = 2, 6, 400
    sizes = (1, 2, 3, 2, 8, 2)
    zero = np.zeros((6, 8, 1))
    data = regression(sizes, zero, zero, clusters)
    member = torch.arange(6) % clusters
    # The variance of a mean over n_k samples is s/n_k, so V_c = s Σ_k p(k|c)²/n_k.
    expected = []
    for c in range(clusters):
        n = np.array([sizes[k] for k in range(6) if k % clusters == c], float)
        expected.append(((n / n.sum()) ** 2 / n).sum())
    simulation = simulate(
        data=data,
        change=lambda _: streaming(Scope.CLUSTERED, clusters, d, member),
        participation=1.0,
        batch=8,
        rounds=rounds,
        backend="vmap",
        chunk=4,
    )
    weights = []
    for round in range(1, rounds + 1):
        state = simulation.start()
        simulation.train(state, round)
        weights.append(state.values["base"]["weight"])
    variances = torch.stack(weights).var(0).sum(-1)
    assert float(variances[0] / variances[1]) == pytest.approx(expected[0] / expected[1], rel=0.2)


# ------------------------------------------------------------------ common part of base and adaptors


def with_adaptor_lr(s, **more):
    def change(method):
        adaptors = replace(method.groups["adaptors"], server_lr=s, **more)
        return replace(method, groups={**method.groups, "adaptors": adaptors})

    return change


def shares(simulation, clusters):
    """p(c): the cluster's share of all training samples."""
    cluster, rows = simulation.data.cluster.numpy(), simulation.data.train.count
    return torch.tensor([rows[cluster == c].sum() / rows.sum() for c in range(clusters)])


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("s", [1.0, 0.1, 0.03])
def test_base_and_adaptors_of_floral_conserve_the_common_part(s, backend):
    """u_t - u_0 = (1/s) Σ_c p(c) (a_c,t - a_c,0) for all t, with one local step and oracle routes.

    The biases of FLoRAL's adaptors have full rank and no preconditioner, so the equation holds for every layer's bias.
    """
    simulation = simulate(
        "floral_10_optimal",
        change=with_adaptor_lr(s),
        clusters=3,
        participation=1.0,
        batch=64,
        backend=backend,
        chunk=3,
    )
    state, start = simulation.start(), simulation.start()
    p = shares(simulation, 3)
    for round in (1, 2, 3, 4):
        simulation.train(state, round)
        for layer in ("hidden.bias", "out.bias"):
            base = state.values["base"][layer] - start.values["base"][layer]
            adaptors = torch.tensordot(p, state.values["adaptors"][layer] - start.values["adaptors"][layer], 1)
            torch.testing.assert_close(s * base, adaptors, rtol=0, atol=1e-13)
            assert float(base.abs().max()) > 1e-3


@pytest.mark.parametrize("s", [1.0, 0.1, 0.03])
def test_full_rank_weights_conserve_the_common_part_and_the_base_gets_1_over_1_plus_s(s):
    """In a linear model with A = I frozen, B is the full matrix. There is no preconditioner."""
    inputs, clusters = 4, 2
    data = make_data((6, 4, 5, 7), shape=(inputs,), clusters=clusters, regression=True, outputs=5)
    frozen = {"out.A": torch.eye(inputs).expand(clusters, inputs, inputs).clone()}

    def change(method):
        method = with_adaptor_lr(s)(method)
        adaptors = method.groups["adaptors"]
        start = {**adaptors.init(), **frozen}
        parts = {
            name: Group(scope=Scope.CLUSTERED, init=lambda n=name: {n: start[n]}, lr=0.1, server_lr=s) for name in start
        }
        parts["out.A"] = replace(parts["out.A"], fixed=True)
        groups = {n: g for n, g in method.groups.items() if n != "adaptors"} | parts

        def predict(view, x, noise, mask):
            return method.predict({**view, "adaptors": {n: view[n][n] for n in start}}, x, noise, mask)

        return replace(method, groups=groups, predict=predict)

    simulation = simulate(
        "floral_1_optimal",
        model="linear",
        data=data,
        change=change,
        params={"rank": "full"},
        switches={"preconditioner": False},
        participation=1.0,
        batch=64,
        rounds=2000,
    )
    state, start = simulation.start(), simulation.start()
    p = shares(simulation, clusters)
    for round in range(1, 31):
        simulation.train(state, round)
        base = state.values["base"]["out.weight"] - start.values["base"]["out.weight"]
        adaptors = torch.tensordot(p, state.values["out.B"]["out.B"] @ frozen["out.A"].double(), 1)
        torch.testing.assert_close(s * base, adaptors, rtol=0, atol=1e-13)
    assert float(base.abs().max()) > 0.05
    share = base.norm() / (base + adaptors).norm()
    assert float(share) == pytest.approx(1 / (1 + s))

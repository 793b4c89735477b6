"""Floco: its limiting case, and its equations written out as plain loops."""

from __future__ import annotations

import federations
import numpy as np
import plain_loops as plain
import pytest
import torch
import torch.nn.functional as F
from federations import SHALLOW, assert_close, make_data, served, train
from plain_loops import CLIENTS, EXACT, UNEQUAL, each_backend, simulated

from floral.engine.local import make_noise
from floral.methods.floco import project_onto_simplex, simplex_points


@pytest.mark.parametrize("model", [model for model in SHALLOW if federations.buildable("floco", model)])
def test_floco_with_one_vertex_is_fedavg(model, unbounded):
    """Also after the projection, when steps are drawn near the only point."""
    how = {"model": model, "rounds": 4, "epochs": 2}
    ours = federations.simulate("floco", params={"vertices": 1}, **how)
    fedavg = federations.simulate("fedavg", **how)
    end, other = train(ours, 4), train(fedavg, 4)
    whole = end.values["base"] | {name: t[0] for name, t in end.values["corners"].items()}
    assert_close(whole, other.values["base"], EXACT)
    torch.testing.assert_close(served(ours, end), served(fedavg, other), rtol=0, atol=EXACT)


def projected(scores, totals):
    """Rows p ≥ 0 that are nearest to the rows of `scores` [n, V] for each of `totals` [S], their sum; over this sum.

    They are max(s - t, 0), with t by bisection: [S, n, V].
    """
    totals = torch.as_tensor(totals, dtype=scores.dtype)[:, None, None]
    low = scores.min(1, keepdim=True).values - totals
    high = scores.max(1, keepdim=True).values.expand_as(low)
    for _ in range(60):
        middle = (low + high) / 2
        too_much = (scores - middle).clamp(min=0).sum(2, keepdim=True) > totals
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (scores - low).clamp(min=0) / totals


def points_of(updates, vertices):
    """Principal components, projected onto simplexes of 1000 sizes; the smallest Riesz energy counts."""
    left, lengths, _ = torch.linalg.svd(updates - updates.mean(0), full_matrices=False)
    scores = (left * lengths)[:, :vertices]
    for column in scores.T:
        column *= column[column.abs().argmax()].sign()
    points = projected(scores, np.linspace(1e-4, 1, 1000))
    pairs = [(points[:, i] - points[:, j]).norm(dim=1).clamp(min=1e-4) for i in range(len(scores)) for j in range(i)]
    energy = sum(1 / distance**2 for distance in pairs)
    return points[energy.argmin()]


def test_points_of_similar_clients_are_near_and_lie_in_the_simplex():
    directions = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    updates = directions.repeat(4, 1) + 0.01 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double()
    points = simplex_points(updates, 3)
    assert bool((points >= 0).all()) and torch.allclose(points.sum(1), torch.ones(12).double())
    distance = torch.cdist(points, points)
    same = torch.arange(12)[:, None] % 3 == torch.arange(12) % 3
    assert float(distance[same].max()) < 0.5 * float(distance[~same].min())
    torch.testing.assert_close(points, points_of(updates, 3), rtol=0, atol=1e-6)
    assert simplex_points(torch.full((4, 5), torch.nan), 3).isnan().all()
    assert torch.equal(simplex_points(torch.zeros(1, 5), 4), torch.full((1, 4), 0.25))


def test_the_projection_gives_the_nearest_point_of_the_simplex():
    scores = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).double()
    totals = (0.01, 0.5, 1.0)
    for total, expected in zip(totals, projected(scores, totals), strict=True):
        torch.testing.assert_close(project_onto_simplex(scores, total), expected, rtol=0, atol=1e-9)


@each_backend
def test_floco(how):
    """Two rounds on the whole simplex, the projection of the updates of round 2, two rounds near the points."""
    vertices, radius = 3, 0.3
    params = {"vertices": vertices, "radius": radius, "projection": 0.5}
    simulation = simulated("floco", UNEQUAL, params=params, rounds=4, **how)
    state = simulation.start()
    base, corners = plain.copied(state.values["base"]), state.values["corners"]["out.weight"].clone()
    points = torch.full((5, vertices), 1 / vertices, dtype=torch.float64)
    assert len(corners.unique(dim=0)) == vertices
    for round in range(1, 5):
        sent = []
        for k in CLIENTS:
            w = base | {"corners": corners}
            for step, (x, y) in enumerate(plain.batches(simulation, k)):
                drawn = make_noise(
                    {"point": (vertices + 1,)}, np.array([k]), seed=simulation.settings.seed, round=round, epoch=0,
                    step=step, batch=4, like=simulation.data.train,
                )["point"][0]  # fmt: skip
                if round <= 2:
                    exponential = -torch.log(1 - drawn[:vertices])
                    alpha = exponential / exponential.sum()
                else:
                    direction = 2 * drawn[:vertices] - 1
                    alpha = points[k] + radius * drawn[vertices] * direction / direction.abs().sum()
                    alpha = alpha / alpha.sum()

                def loss(w, x=x, y=y, alpha=alpha):
                    head = sum(share * corner for share, corner in zip(alpha, w["corners"], strict=True))
                    return F.cross_entropy(F.linear(plain.features(w, x), head, w["out.bias"]), y)

                (gradient,) = plain.gradients(loss, w)
                w = plain.stepped(w, gradient)
            sent.append(w)
        if round == 2:
            points = points_of(torch.stack([(corners - w["corners"]).flatten() for w in sent]), vertices)
        average = plain.mean(sent, plain.shares(simulation))
        corners, base = average["corners"], {name: average[name] for name in base}
        simulation.train(state, round)
        assert_close(state.values["base"], base, EXACT)
        assert_close(state.values["corners"], {"out.weight": corners}, EXACT)
        assert_close(state.values["point"], {"weights": points}, 1e-7)
    assert float((points[0] - points[1]).abs().max()) > 0.1


def test_a_client_that_comes_after_the_projection_keeps_the_centre():
    data = make_data((8,) * 12)
    simulation = federations.simulate("floco", data=data, participation=0.25, rounds=4, params={"vertices": 3})
    state = train(simulation, 4)
    early = {k for round in (1, 2) for k in simulation.cohort(round).tolist()}
    late = sorted({k for round in (3, 4) for k in simulation.cohort(round).tolist()} - early)
    weights = state.values["point"]["weights"]
    assert late and all(torch.equal(weights[k], torch.full((3,), 1 / 3).double()) for k in late)
    assert all(bool((weights[k] - 1 / 3).abs().max() > 1e-3) for k in early)


def test_the_points_do_not_change_again():
    simulation = federations.simulate("floco", rounds=6)
    state = train(simulation, 3)
    points = state.values["point"]["weights"].clone()
    for round in (4, 5, 6):
        simulation.train(state, round)
        assert torch.equal(state.values["point"]["weights"], points)
    assert float(plain.row(state.values["point"], 0)["weights"].std()) > 0


def test_the_flag_costs_one_float_in_the_round_before_the_projection():
    simulation = federations.simulate("floco", rounds=4)
    state = simulation.start()
    sent = [simulation.costs_of(state, round).sent_up for round in range(1, 5)]
    assert [count - min(sent) for count in sent] == [0, 1, 0, 0]

"""Floco (arXiv 2403.03333): the heads of all clients are points of one simplex; each client trains near its point."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from floral.core.spec import Cost, Group, Method, Phase, Problem, Routing, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import distinct_starts, head_name, model_groups, predictor
from floral.toolkit.stages import (
    UNSENT_FLAG,
    flag_removed,
    memory_group,
    phases_of_stage,
    remember,
    stage_ends,
    stage_group,
)

SCALES = 1000
"""Number of scales that `simplex_points` tries."""
MIN_DISTANCE = 1e-4
"""Smallest distance of two points in the energy of `simplex_points`."""


def build(problem: Problem, *, vertices: int, radius: float, projection: float) -> Method:
    """Floco: the weight of the head is a point of a simplex with V corners θ_v. Clients train in regions of it.

    With the weights α (α_v ≥ 0, Σ_v α_v = 1) the head, the last linear layer, has the weight matrix Σ_v α_v θ_v. The
    corners θ_v, the bias of the head and all other layers are SHARED and averaged as in FedAvg. The initial corners
    differ.

    In the first part of the rounds, each step draws α uniformly from the whole simplex, and clients predict with the
    centre α_v = 1/V. After the share `projection` of the rounds, the server projects the last updates of the corners of
    each client onto the simplex (see `simplex_points`). This gives client k a point α_k, which is PRIVATE and fixed
    from then on. In the second part, each step draws α = α_k + r·u and rescales it to the sum 1. u is a random
    direction with Σ_v |u_v| = 1, and r is uniform on [0, radius). Client k predicts with α_k.

    Limiting case: with V = 1 this is FedAvg.

    The server keeps the last update of each client, because only the clients of a round send one. A client that has not
    taken part before the projection keeps the centre.

    Costs: V corners instead of one head are sent. The multiply-adds of the sum Σ_v α_v θ_v are counted.

    Raises:
        Refused: the model has no body before a last linear layer.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    name = f"{head_name(model)}.weight"
    models, predict_with = model_groups(model, Scope.SHARED, stream, problem.lr), predictor(model)
    start = distinct_starts(lambda stream: {name: model.init(stream)[name]}, stream, vertices)
    size = start[name].numel()

    def predict_at(point, view, x, noise, mask):
        head = {name: torch.tensordot(point, view["corners"][name], 1)}
        drawn = None if noise is None else {layer: noise[layer] for layer in model.noise}
        return predict_with({**view, "base": {**view["base"], **head}}, x, drawn, mask)

    def anywhere(view, x, noise, mask):
        exponential = -torch.log1p(-noise["point"][:vertices]) + torch.finfo(problem.dtype).tiny
        return predict_at(exponential / exponential.sum(), view, x, noise, mask)

    def nearby(view, x, noise, mask):
        direction, distance = 2 * noise["point"][:vertices] - 1, radius * noise["point"][vertices]
        point = view["point"]["weights"] + distance * direction / direction.abs().sum()
        return predict_at(point / point.sum(), view, x, noise, mask)

    def last_before(rounds: int) -> int:
        return max(1, int(projection * rounds))

    def project(served: ServerView) -> View:
        assert served.client_vectors is not None
        before = served.before["corners"][name].flatten()
        updates, present = remember(served, "update", before - served.client_vectors.vectors)
        points = served.before["point"]["weights"].clone()
        if stage_ends(served):
            points[present > 0] = simplex_points(updates[present > 0], vertices)
        return {"point": {"weights": points}, **flag_removed(served)}

    both = Phase(train=("base", "corners"))
    centre = torch.full((problem.clients, vertices), 1 / vertices)
    base = {key: value for key, value in models["base"].init().items() if key != name}
    return Method(
        groups={
            **models,
            "base": Group(scope=Scope.SHARED, init=lambda: base, lr=problem.lr),
            "corners": Group(scope=Scope.SHARED, init=lambda: start, lr=problem.lr),
            "point": Group(scope=Scope.PRIVATE, init=lambda: {"weights": centre}, statistic=True),
            **stage_group(),
            **memory_group("update", problem.clients, size),
        },
        predict=lambda view, x, noise, mask: predict_at(view["point"]["weights"], view, x, noise, mask),
        phases=(
            *phases_of_stage(both, anywhere, last_before),
            replace(both, predict=nearby, when=lambda round, rounds: round > last_before(rounds)),
        ),
        routing=Routing(served_log_route=lambda view: view["point"]["weights"].log(), clusters=vertices),
        server=ServerStep(client_vector=lambda view: view["corners"][name].flatten(), update=project),
        noise={**model.noise, "point": (vertices + 1,)},
        cost=Cost(
            passes_per_sample=1 + size / model.multiply_adds(problem.shape, problem.batch),
            floats_sent=UNSENT_FLAG,
            floats_served={"corners": size // vertices},
        ),
    )


def simplex_points(updates: Tensor, vertices: int) -> Tensor:
    """Return points [n, V] of the simplex for the updates [n, d] of n clients. Similar updates have near points.

    The V principal components of the updates are projected onto a simplex with the sum z, and divided by z. z is the
    one of `SCALES` numbers between 0 and 1 for which the points are farthest apart: their Riesz energy, the sum of
    1/distance² over all pairs, is smallest. The points are NaN if an update is.

    Source: arXiv 2403.03333, and `project_clients` in baselines/floco of adap/flower.
    """
    if not updates.isfinite().all():
        return updates.new_full((len(updates), vertices), math.nan)
    centred = (updates - updates.mean(0)).double()
    directions, lengths, _ = torch.linalg.svd(centred, full_matrices=False)
    scores = (directions * lengths)[:, :vertices]
    scores = scores * scores.gather(0, scores.abs().argmax(0, keepdim=True)).sign()
    scores = torch.nn.functional.pad(scores, (0, vertices - scores.shape[1]))
    best, lowest = scores, math.inf
    for z in torch.linspace(MIN_DISTANCE, 1, SCALES, dtype=scores.dtype).tolist():
        points = project_onto_simplex(scores, z)
        energy = float(torch.nn.functional.pdist(points).clamp(min=MIN_DISTANCE).pow(-2).sum())
        if energy < lowest:
            best, lowest = points, energy
    return best.to(updates.dtype)


def project_onto_simplex(scores: Tensor, total: float) -> Tensor:
    """Return the nearest points p to the rows of `scores` [n, V] with p_v ≥ 0 and Σ_v p_v = total, divided by total."""
    ordered = scores.sort(1, descending=True).values
    excess = ordered.cumsum(1) - total
    count = (ordered * torch.arange(1, scores.shape[1] + 1, device=scores.device) > excess).sum(1, keepdim=True)
    points = (scores - excess.gather(1, count - 1) / count).clamp(min=0)
    return points / points.sum(1, keepdim=True)

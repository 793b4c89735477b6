"""Evaluation: each client's model on its own rows, or on all rows of its cluster; routes against true clusters."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from floral.core.spec import Loss, Method, Scope
from floral.engine.local import log_routes
from floral.engine.rows import Rows
from floral.engine.state import State, dims, one, view
from floral.toolkit.parts import sample_losses

Weighting = Literal["sample_mean", "batch_means"]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
"""Applies a function to items, perhaps several at once."""
TOP = 5
"""A hit among so many likeliest classes is told too, where there are more classes."""
LARGEST_EXPONENT = 700.0
SLICE = 2048
"""Rows of a long test set, summed over clients, that are evaluated at a time."""
ALONE = 4
"""Clients that are evaluated on them at a time where each has a model of its own: its weights are read anew for every
slice, so more rows are to meet them."""
MANY = 128
"""Clients that are evaluated together at most: a slice is to have rows for each."""
CUSTOM_PREFIX = 0.1
"""Share of what a client sees that is its own, from which on it counts as having a model of its own."""


@dataclass(frozen=True)
class Scores:
    """Per client: loss, accuracy and correct rows (NaN and 0 for regression), evaluated rows; all [len(clients)].

    top5 is the share of rows whose class is among the TOP likeliest; NaN where there are no more classes than these.
    Of text, all of these are means over tokens, and `correct` counts tokens, of which a row has `tokens`.
    """

    clients: np.ndarray
    rows: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    correct: np.ndarray
    top5: np.ndarray
    tokens: int = 1

    def mean(self, values: np.ndarray, of: np.ndarray | slice = slice(None)) -> float:
        """Mean over clients weighted by their rows; NaN when nobody has a row."""
        rows = self.rows[of]
        used = rows > 0
        return float(np.average(values[of][used], weights=rows[used])) if used.any() else math.nan

    def by_cluster(self, values: np.ndarray, cluster: np.ndarray) -> list[float]:
        """The mean in every true cluster, NaN where one has no row; `cluster` [len(clients)]."""
        return [self.mean(values, cluster == c) for c in range(int(cluster.max()) + 1)]


def on_own_rows(
    method: Method,
    state: State,
    rows: Rows,
    pool_of_client: Tensor,
    clients: np.ndarray,
    *,
    loss: Loss,
    weighting: Weighting,
    batch: int,
    chunk: int,
    vectorised: bool,
    map: Map,
) -> Scores:
    """Each client's model on its own rows. "batch_means" is the published code's mean of batch means."""
    losses, correct, accuracy = (np.zeros(len(clients)) for _ in range(3))
    top5 = np.full(len(clients), math.nan)
    count = rows.count[clients]

    def score(now: slice) -> None:
        ids = torch.from_numpy(clients[now]).to(rows.x.device)
        width = max(1, int(count[now].max()))
        x, y = rows.gather(torch.from_numpy(rows.index[clients[now], :width]).to(rows.x.device))
        with torch.no_grad():
            outputs = predict(method, state, pool_of_client[ids], ids, x, vectorised)
        each, hit = sample_scores(loss, outputs, y)
        weight = sample_weights(count[now], width, batch if weighting == "batch_means" else width)
        losses[now] = weighted(each, weight)
        accuracy[now] = weighted(hit, weight)
        correct[now] = weighted(hit, weight > 0)
        if (near := near_hits(loss, outputs, y)) is not None:
            top5[now] = weighted(near, weight)

    map(score, [slice(first, min(first + chunk, len(clients))) for first in range(0, len(clients), chunk)])
    tokens = tokens_of(loss, rows.y)
    return Scores(clients, count, losses, accuracy, np.rint(tokens * correct).astype(np.int64), top5, tokens)


def on_population(
    method: Method,
    state: State,
    global_test: Callable[[int], tuple[Tensor, Tensor]],
    decode: Callable[[Tensor], Tensor],
    pool_of_client: Tensor,
    cluster: Tensor,
    *,
    loss: Loss,
    chunk: int,
    vectorised: bool,
    map: Map,
) -> Scores:
    """Each client's model on the whole test set as its true cluster sees it; equal models are evaluated once.

    Lifted clients share the rows, so that what their models have in common, as FLoRAL's base, is applied once to all.
    """
    clients = len(cluster)
    same = identical_models(method, state, pool_of_client, cluster)
    together = min(chunk, ALONE if own_share(method, state) >= CUSTOM_PREFIX else MANY)
    result, tokens = np.zeros((clients, 5)), 1
    of_cluster = cluster.cpu().numpy()
    for c in np.unique(of_cluster).tolist():
        x, y = global_test(c)
        tokens = tokens_of(loss, y)
        x, shown = decode(x), np.unique(same[of_cluster == c])

        def score(some: np.ndarray, x: Tensor = x, y: Tensor = y) -> None:
            ids = torch.from_numpy(some).to(cluster.device)
            total, step = np.zeros((len(some), 3)), max(1, SLICE // len(some))
            for some_x, some_y in zip(x.split(step), y.split(step), strict=True):
                with torch.no_grad():
                    outputs = predict(method, state, pool_of_client[ids], ids, some_x, vectorised, alike=True)
                labels = some_y.expand(len(some), *some_y.shape)
                each, hit = sample_scores(loss, outputs, labels)
                near = near_hits(loss, outputs, labels)
                sums = (each.double(), hit, torch.full_like(hit, math.nan) if near is None else near)
                total += torch.stack([found.sum(1).double() for found in sums], 1).cpu().numpy()
            rows = np.full(len(some), len(x))
            result[some] = np.column_stack([rows, total[:, :2] / rows[:, None], total[:, 1], total[:, 2] / rows])

        map(score, np.array_split(shown, -(-len(shown) // (together if vectorised else 1))))
    result = result[same]
    rows, losses, accuracy, correct, top5 = result.T
    hits = np.rint(tokens * correct).astype(np.int64)
    return Scores(np.arange(clients), rows.astype(np.int64), losses, accuracy, hits, top5, tokens)


def own_share(method: Method, state: State) -> float:
    """The share of PRIVATE values in all that a client sees."""
    own = all_ = 0
    for name, group in method.groups.items():
        private = group.scope is Scope.PRIVATE
        seen = sum(value[0].numel() if private else value.numel() for value in state.values[name].values())
        own, all_ = own + seen * private, all_ + seen
    return own / max(1, all_)


def identical_models(method: Method, state: State, pool_of_client: Tensor, cluster: Tensor) -> np.ndarray:
    """[K] the first client of the same true cluster that is served the very same model: one of equal PRIVATE values."""
    groups = [state.values[name] for name, group in method.groups.items() if group.scope is Scope.PRIVATE]
    private = [params[name] for params in groups for name in sorted(params)]
    fixed = method.routing.cluster_of_client
    members = torch.zeros_like(cluster) if fixed is None else fixed
    firsts: dict[tuple[int, int, bytes], int] = {}

    def first(client: int, at: int, true: int, member: int) -> int:
        own = hashlib.blake2b(digest_size=16)
        for values in private:
            own.update(values[at].contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
        return firsts.setdefault((true, member, own.digest()), client)

    clients = zip(pool_of_client.tolist(), cluster.tolist(), members.tolist(), strict=True)
    return np.array([first(client, *of) for client, of in enumerate(clients)])


def predict(
    method: Method, state: State, pools: Tensor, clients: Tensor, x: Tensor, vectorised: bool, alike: bool = False
) -> Tensor:
    """Outputs [m, B, outputs] of m clients on x [m, B, ...], or on the same x [B, ...] if they are `alike` in it."""
    seen, axes = view(method, state.values, pools, clients)
    if vectorised and not (alike and set(axes.values()) <= {None}):  # else there is one model, and nothing to lift
        serve = torch.vmap(
            lambda seen, x: method.predict(seen, x, None, None)[0], in_dims=(dims(axes, seen), None if alike else 0)
        )
        return serve(seen, x)
    each = (x if alike else x[k] for k in range(len(clients)))
    return torch.stack([method.predict(one(seen, axes, k), own, None, None)[0] for k, own in enumerate(each)])


def sample_scores(loss: Loss, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and hit (0 or 1; of text, the share of tokens that are hit; 0 for regression) of each sample, [m, B]."""
    each = sample_losses(loss, outputs.flatten(0, 1), y.flatten(0, 1)).reshape(y.shape[:2])
    if loss == "mse":
        return each, torch.zeros_like(each)
    hit = (outputs.argmax(-1) == y).to(each.dtype)
    return each, hit.mean(-1) if loss == "token_cross_entropy" else hit


def tokens_of(loss: Loss, y: Tensor) -> int:
    """Labels of one row of y [N, …]: T of text, else 1."""
    return y.shape[1] if loss == "token_cross_entropy" else 1


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy per token; infinite where that is beyond what a float holds."""
    return math.exp(loss) if loss < LARGEST_EXPONENT else math.inf if loss == loss else math.nan


def near_hits(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor | None:
    """Whether each sample's class is among the TOP likeliest, [m, B] of 0 and 1 (of text, the share of
    tokens); None where that says nothing.

    Counted from what is no likelier than it, so that ties count for it and a NaN does not.
    """
    if loss == "mse" or (classes := outputs.shape[-1]) <= TOP:
        return None
    below = outputs <= outputs.gather(-1, y.unsqueeze(-1))
    near = (below.sum(-1) > classes - TOP).to(outputs.dtype)
    return near.mean(-1) if loss == "token_cross_entropy" else near


def sample_weights(count: np.ndarray, width: int, batch: int) -> np.ndarray:
    """[m, width] weights of a client's rows that sum to 1: equal, or equal per batch of `batch` rows."""
    position = np.arange(width)
    within = np.clip(count[:, None] - position // batch * batch, 0, batch)  # rows of the batch that holds a position
    batches = -(-count // batch)
    weight = np.zeros((len(count), width))
    valid = position < count[:, None]
    np.divide(1.0, within * batches[:, None], out=weight, where=valid)
    return weight


def weighted(values: Tensor, weight: np.ndarray) -> np.ndarray:
    return (values.cpu().double().numpy() * weight).sum(1)


# ---------------------------------------------------------------------------------------------- routes


def served_routes(
    method: Method, state: State, pool_of_client: Tensor, clients: int, clusters: int
) -> np.ndarray | None:
    """π [K, C] of all clients, certain where the method fixes their clusters; None for a method without routes."""
    if method.routing.cluster_of_client is not None:
        return (method.routing.cluster_of_client.cpu().numpy()[:, None] == np.arange(clusters)).astype(float)
    log_route = method.routing.served_log_route or method.routing.log_route
    if log_route is None:
        return None
    ids = torch.arange(clients, device=pool_of_client.device)
    seen, axes = view(method, state.values, pool_of_client, ids)
    return log_routes(log_route, seen, axes, clients).double().exp().cpu().numpy()


def route_metrics(route: np.ndarray, cluster: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Recovery of the true clusters by the routes [K, C]: ari of argmax π, mean entropy in nats, mismatch.

    mismatch = mean over clusters of ‖p̂(k|c) - p*(k|c)‖₁ with p̂ ∝ n_k π_kc and p* ∝ n_k over the true members, after
    the relabelling of clusters that matches them best; 0 is perfect, 2 the worst, 1 for a cluster without a
    counterpart. Where all clients are of one true cluster there is nothing for C > 1 routes to recover: entropy alone.
    """
    from scipy.optimize import linear_sum_assignment  # 0.2 s to import, and only routed methods need it

    clusters = route.shape[1]
    positive = np.where(route > 0, route, 1.0)
    spread = float(-(route * np.log(positive)).sum(1).mean())
    if clusters > 1 and (cluster == cluster[0]).all():
        return {"entropy": spread}
    if (missing := int(cluster.max()) + 1 - clusters) > 0:  # fewer were assumed than there are
        route, clusters = np.pad(route, ((0, 0), (0, missing))), clusters + missing
    weight = route * rows[:, None]
    truth = (cluster[:, None] == np.arange(clusters)) * rows[:, None]
    estimate, exact = (part / np.maximum(part.sum(0), 1e-300) for part in (weight, truth))
    distance = np.abs(estimate[:, :, None] - exact[:, None, :]).sum(0)
    return {
        "ari": adjusted_rand_index(route.argmax(1), cluster),
        "entropy": spread,
        "mismatch": float(distance[linear_sum_assignment(distance)].mean()),
    }


def adjusted_rand_index(found: np.ndarray, true: np.ndarray) -> float:
    """Agreement of two labellings beyond chance (Hubert and Arabie 1985): 1 if equal up to names, about 0 at random."""
    table = np.zeros((found.max() + 1, true.max() + 1))
    np.add.at(table, (found, true), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1)).sum() / 2)

    both, rows, columns, total = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), pairs(np.array([len(found)]))
    expected = rows * columns / total if total else 0.0
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)

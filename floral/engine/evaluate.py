"""Evaluate the clients' models on their own samples or the global test set, and compare routes with true clusters."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from floral.core.spec import Loss, Method, Scope, View
from floral.engine.client_data import Rows
from floral.engine.local import for_each_client, log_routes
from floral.engine.state import Axes, State, client_view, dims, view
from floral.toolkit.parts import sample_losses

Weighting = Literal["sample_mean", "batch_means"]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
"""Applies a function to each item, perhaps in parallel."""
TOP_K = 5
"""k of the top-k accuracy, which is computed for tasks with more than k classes."""
LARGEST_EXPONENT = 700.0
"""Largest loss in nats whose exponential fits a float64, rounded down."""
SLICE_SAMPLES = 2048
"""Samples of the global test set, summed over clients, that are evaluated in one piece."""
MAX_PERSONAL_MODELS = 4
"""Maximum number of clients evaluated together if each has a personal model. The weights of each model are read again
for every slice, so a slice should have many samples per model."""
MAX_CLIENTS = 128
"""Maximum number of clients evaluated together, so that a slice has samples for each of them."""
MIN_PERSONAL_SHARE = 0.1
"""A client counts as having a personal model if at least this share of its parameters is PRIVATE."""


@dataclass(frozen=True)
class Scores:
    """The scores of all evaluated clients. Each array has one entry per client.

    `rows` is the number of evaluated samples, and `correct` is the number of correct predictions. `top5` is the share
    of samples whose class has one of the 5 largest logits. It is NaN for tasks with at most 5 classes. For regression,
    `accuracy` and `correct` are 0, and `top5` is NaN. For text, the scores are means over tokens, `correct` is the
    number of correct tokens, and each sample has `tokens` tokens.
    """

    clients: np.ndarray
    rows: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    correct: np.ndarray
    top5: np.ndarray
    tokens: int = 1

    def mean(self, values: np.ndarray, of: np.ndarray | slice = slice(None)) -> float:
        """Return the mean of `values` over the clients selected by `of`, weighted by their numbers of samples.

        The mean is NaN if these clients have no samples.
        """
        rows = self.rows[of]
        used = rows > 0
        return float(np.average(values[of][used], weights=rows[used])) if used.any() else math.nan

    def by_cluster(self, values: np.ndarray, cluster: np.ndarray) -> list[float]:
        """Return, for each true cluster, the mean of `values` over its clients, or NaN if they have no samples.

        The mean is weighted by the clients' numbers of samples. `cluster` has the true cluster of each evaluated
        client.
        """
        return [self.mean(values, cluster == c) for c in range(int(cluster.max()) + 1)]


def on_own_rows(
    method: Method,
    state: State,
    rows: Rows,
    train: Rows,
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
    """Evaluate each client's model on the client's own samples of one split; `rows` has these samples.

    `train` has the training samples, for `Method.before_predictions`. With `weighting` "sample_mean", a score is the
    mean over the samples. With "batch_means", it is the mean of the means of the batches, as in the published code.
    """
    losses, correct, accuracy = (np.zeros(len(clients)) for _ in range(3))
    top5 = np.full(len(clients), math.nan)
    count = rows.count[clients]

    def score(now: slice) -> None:
        ids = torch.from_numpy(clients[now]).to(rows.x.device)
        width = max(1, int(count[now].max()))
        x, y = rows.gather(torch.from_numpy(rows.index[clients[now], :width]).to(rows.x.device))
        with torch.no_grad():
            values = prediction_view(method, state, train, pool_of_client[ids], ids, vectorised)
            outputs = predict(method, *values, x, vectorised)
        sample_loss, hit = sample_scores(loss, outputs, y)
        weight = sample_weights(count[now], width, batch if weighting == "batch_means" else width)
        losses[now] = weighted(sample_loss, weight)
        accuracy[now] = weighted(hit, weight)
        correct[now] = weighted(hit, weight > 0)
        if (near := near_hits(loss, outputs, y)) is not None:
            top5[now] = weighted(near, weight)

    map(score, [slice(first, min(first + chunk, len(clients))) for first in range(0, len(clients), chunk)])
    tokens = tokens_of(loss, rows.y)
    return Scores(clients, count, losses, accuracy, np.rint(tokens * correct).astype(np.int64), top5, tokens)


def on_global_test_set(
    method: Method,
    state: State,
    global_test: Callable[[int], tuple[Tensor, Tensor]],
    decode: Callable[[Tensor], Tensor],
    train: Rows,
    pool_of_client: Tensor,
    cluster: Tensor,
    *,
    loss: Loss,
    chunk: int,
    vectorised: bool,
    map: Map,
) -> Scores:
    """Evaluate each client's model on the global test set, under the shift of the client's true cluster.

    If several clients of one true cluster have equal models, the model is evaluated only once. With `vectorised`, the
    models of several clients are evaluated together on the same samples. The part that their models have in common,
    e.g. FLoRAL's base, is therefore applied only once.
    """
    clients = len(cluster)
    same = identical_models(method, state, pool_of_client, cluster)
    personal = method.before_predictions is not None or private_share(method, state) >= MIN_PERSONAL_SHARE
    together = min(chunk, MAX_PERSONAL_MODELS if personal else MAX_CLIENTS)
    result, tokens = np.zeros((clients, 5)), 1
    of_cluster = cluster.cpu().numpy()
    for c in np.unique(of_cluster).tolist():
        x, y = global_test(c)
        tokens = tokens_of(loss, y)
        x, distinct = decode(x), np.unique(same[of_cluster == c])

        def score(evaluated: np.ndarray, x: Tensor = x, y: Tensor = y) -> None:
            ids = torch.from_numpy(evaluated).to(cluster.device)
            total, step = np.zeros((len(evaluated), 3)), max(1, SLICE_SAMPLES // len(evaluated))
            seen, axes = prediction_view(method, state, train, pool_of_client[ids], ids, vectorised)
            for slice_x, slice_y in zip(x.split(step), y.split(step), strict=True):
                with torch.no_grad():
                    outputs = predict(method, seen, axes, slice_x, vectorised, same_for=len(ids))
                labels = slice_y.expand(len(evaluated), *slice_y.shape)
                sample_loss, hit = sample_scores(loss, outputs, labels)
                near = near_hits(loss, outputs, labels)
                columns = (sample_loss.double(), hit, torch.full_like(hit, math.nan) if near is None else near)
                total += torch.stack([column.sum(1).double() for column in columns], 1).cpu().numpy()
            rows = np.full(len(evaluated), len(x))
            result[evaluated] = np.column_stack([rows, total[:, :2] / rows[:, None], total[:, 1], total[:, 2] / rows])

        map(score, np.array_split(distinct, -(-len(distinct) // (together if vectorised else 1))))
    result = result[same]
    rows, losses, accuracy, correct, top5 = result.T
    hits = np.rint(tokens * correct).astype(np.int64)
    return Scores(np.arange(clients), rows.astype(np.int64), losses, accuracy, hits, top5, tokens)


def private_share(method: Method, state: State) -> float:
    """Return the share of PRIVATE values among all values of parameters that one client uses."""
    private_count = count = 0
    for name, group in method.groups.items():
        private = group.scope is Scope.PRIVATE
        seen = sum(value[0].numel() if private else value.numel() for value in state.values[name].values())
        private_count, count = private_count + seen * private, count + seen
    return private_count / max(1, count)


def identical_models(method: Method, state: State, pool_of_client: Tensor, cluster: Tensor) -> np.ndarray:
    """Return, for each of K clients, the index of the first client with an identical model and the same true cluster.

    Models are identical if their PRIVATE values and their fixed clusters are equal, unless the method computes values
    from the samples of each client (`Method.before_predictions`).
    """
    if method.before_predictions is not None:
        return np.arange(len(cluster))
    groups = [state.values[name] for name, group in method.groups.items() if group.scope is Scope.PRIVATE]
    private = [params[name] for params in groups for name in sorted(params)]
    fixed = method.routing.cluster_of_client
    members = torch.zeros_like(cluster) if fixed is None else fixed
    firsts: dict[tuple[int, int, bytes], int] = {}

    def first(client: int, at: int, true: int, member: int) -> int:
        values_hash = hashlib.blake2b(digest_size=16)
        for values in private:
            values_hash.update(values[at].contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
        return firsts.setdefault((true, member, values_hash.digest()), client)

    clients = zip(pool_of_client.tolist(), cluster.tolist(), members.tolist(), strict=True)
    return np.array([first(client, *of) for client, of in enumerate(clients)])


def prediction_view(
    method: Method, state: State, train: Rows, pools: Tensor, clients: Tensor, vectorised: bool
) -> tuple[View, Axes]:
    """Return the values with which m clients predict, and the client axis of each group (0 or None).

    `clients` [m] has the indices of these clients, and `pools` [m] those of their pools (see `view`). `train` has the
    training samples, from which `Method.before_predictions` computes further values.
    """
    seen, axes = view(method, state.values, pools, clients)
    if method.before_predictions is None:
        return seen, axes
    held = train.of_clients(pools.cpu().numpy())
    computed = for_each_client(method.before_predictions, held, (seen, axes), vectorised=vectorised)
    return {**seen, **computed}, {**axes, **dict.fromkeys(computed, 0)}


def predict(method: Method, seen: View, axes: Axes, x: Tensor, vectorised: bool, same_for: int | None = None) -> Tensor:
    """Return the outputs [m, B, outputs] of m clients' models on their samples x [m, B, ...].

    `seen` and `axes` are the results of `prediction_view`. With `same_for` = m, all m clients get the same samples x
    [B, ...].
    """
    one_model = same_for is not None and set(axes.values()) <= {None}
    if vectorised and not one_model:
        serve = torch.vmap(
            lambda seen, x: method.predict(seen, x, None, None)[0], in_dims=(dims(axes, seen), None if same_for else 0)
        )
        return serve(seen, x)
    outputs = [
        method.predict(client_view(seen, axes, k), x if same_for else x[k], None, None)[0]
        for k in range(same_for or len(x))
    ]
    return torch.stack(outputs)


def sample_scores(loss: Loss, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and the accuracy of each sample, both [m, B] for m clients with B samples.

    The accuracy of a sample is 0 or 1 for classification, the share of correct tokens for text, and 0 for regression.
    """
    losses = sample_losses(loss, outputs.flatten(0, 1), y.flatten(0, 1)).reshape(y.shape[:2])
    if loss == "mse":
        return losses, torch.zeros_like(losses)
    hit = (outputs.argmax(-1) == y).to(losses.dtype)
    return losses, hit.mean(-1) if loss == "token_cross_entropy" else hit


def tokens_of(loss: Loss, y: Tensor) -> int:
    """Return the number of labels of one sample of y [N, …]: the number of tokens for text, otherwise 1."""
    return y.shape[1] if loss == "token_cross_entropy" else 1


def perplexity(loss: float) -> float:
    """Return the perplexity exp(loss), where `loss` is the mean cross-entropy per token in nats.

    The perplexity is infinite if the loss is at least LARGEST_EXPONENT, and NaN if the loss is NaN.
    """
    return math.exp(loss) if loss < LARGEST_EXPONENT else math.inf if loss == loss else math.nan


def near_hits(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor | None:
    """Return the top-5 accuracy [m, B] of each sample: 1 if its true class has one of the 5 largest logits, else 0.

    More exactly, it is 1 if fewer than 5 logits are larger than the logit of the true class. For text, it is the mean
    over the tokens of the sample. The result is None for regression, and for tasks with at most 5 classes. If the logit
    of the true class is NaN, the accuracy is 0.
    """
    if loss == "mse" or (classes := outputs.shape[-1]) <= TOP_K:
        return None
    below = outputs <= outputs.gather(-1, y.unsqueeze(-1))
    near = (below.sum(-1) > classes - TOP_K).to(outputs.dtype)
    return near.mean(-1) if loss == "token_cross_entropy" else near


def sample_weights(count: np.ndarray, width: int, batch: int) -> np.ndarray:
    """Return the weight of each sample in the score of its client, as an array [m, width] for m clients.

    `count` [m] has the number of samples of each client. `width` is at least the largest of these numbers; a client
    with fewer samples has the weight 0 at the remaining places. The weights of a client sum to 1. All its batches of
    `batch` samples have the same total weight, even if the last batch is smaller. If `batch` equals `width`, a client
    has one batch, and all its samples have the same weight.
    """
    position = np.arange(width)
    within = np.clip(
        count[:, None] - position // batch * batch, 0, batch
    )  # size of the batch that contains the position
    batches = -(-count // batch)
    weight = np.zeros((len(count), width))
    valid = position < count[:, None]
    np.divide(1.0, within * batches[:, None], out=weight, where=valid)
    return weight


def weighted(values: Tensor, weight: np.ndarray) -> np.ndarray:
    """Return the weighted sum over the samples of `values` [m, B] for each of m clients."""
    return (values.cpu().double().numpy() * weight).sum(1)


# ---------------------------------------------------------------------------------------------- routes


def served_routes(
    method: Method, state: State, pool_of_client: Tensor, clients: int, clusters: int
) -> np.ndarray | None:
    """Return the routes [K, C]: for each of K clients, the weight of each of C clusters in the client's model.

    If the method fixes the clusters of its clients, a route is 1 for the client's cluster and 0 for all others. The
    result is None for a method without routes.
    """
    if method.routing.cluster_of_client is not None:
        return (method.routing.cluster_of_client.cpu().numpy()[:, None] == np.arange(clusters)).astype(float)
    log_route = method.routing.served_log_route or method.routing.log_route
    if log_route is None:
        return None
    ids = torch.arange(clients, device=pool_of_client.device)
    seen, axes = view(method, state.values, pool_of_client, ids)
    return log_routes(log_route, seen, axes, clients).double().exp().cpu().numpy()


def route_metrics(route: np.ndarray, cluster: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Compare the routes [K, C] of K clients with their true clusters, and return three metrics.

    - `ari`: adjusted Rand index between the cluster with the largest route and the true cluster; 1 is perfect.
    - `entropy`: mean entropy of the routes in nats.
    - `mismatch`: how much the clients' weights in a cluster differ from their weights in the matching true cluster, as
      a mean over the clusters; 0 is perfect and 2 the worst.

    In detail, let n_k be the number of samples of client k (`rows`), and π_kc its route to cluster c. The weight of
    client k in cluster c is n_k·π_kc, divided by the sum of these products over all clients. Its weight in its own true
    cluster is n_k, divided by the number of samples of all members; its weight in every other true cluster is 0. The
    mismatch of a cluster is the sum over the clients of the absolute differences of the two weights. The clusters are
    matched with the true clusters such that the mean mismatch is as small as possible. If the numbers of clusters and
    true clusters differ, a cluster may be left without a match; its mismatch is 1.

    If the task has one true cluster and C > 1, only the entropy is returned, because there are no clusters to find.
    """
    from scipy.optimize import linear_sum_assignment  # 0.2 s to import, and only routed methods need it

    clusters = route.shape[1]
    positive = np.where(route > 0, route, 1.0)
    spread = float(-(route * np.log(positive)).sum(1).mean())
    if clusters > 1 and (cluster == cluster[0]).all():
        return {"entropy": spread}
    if (missing := int(cluster.max()) + 1 - clusters) > 0:  # the method has fewer clusters than the task
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


def adjusted_rand_index(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the adjusted Rand index of two labellings, which is 1 if they differ only in the names of the labels.

    It is about 0 for random labellings. Source: Hubert and Arabie 1985.
    """
    table = np.zeros((predicted.max() + 1, true.max() + 1))
    np.add.at(table, (predicted, true), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1)).sum() / 2)

    both, rows, columns, total = (
        pairs(table),
        pairs(table.sum(1)),
        pairs(table.sum(0)),
        pairs(np.array([len(predicted)])),
    )
    expected = rows * columns / total if total else 0.0
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)

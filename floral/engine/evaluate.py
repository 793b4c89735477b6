"""Evaluation: scores of each client's model on its own samples or on the global test set, and metrics of routes."""

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
from floral.engine.client_data import Rows
from floral.engine.local import log_routes
from floral.engine.state import State, client_view, dims, view
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
    """Scores of each client; all arrays are [len(clients)].

    `rows` counts the evaluated samples and `correct` the correct ones. `top5` is the share of samples whose class is
    among the TOP_K with the largest logits; NaN if there are not more classes. For regression, accuracy and correct
    are 0 and top5 is NaN. For text, loss and accuracies are means over tokens, and `correct` counts tokens; each sample
    has `tokens` tokens.
    """

    clients: np.ndarray
    rows: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    correct: np.ndarray
    top5: np.ndarray
    tokens: int = 1

    def mean(self, values: np.ndarray, of: np.ndarray | slice = slice(None)) -> float:
        """Mean over clients, weighted by their numbers of samples; NaN if there are no samples."""
        rows = self.rows[of]
        used = rows > 0
        return float(np.average(values[of][used], weights=rows[used])) if used.any() else math.nan

    def by_cluster(self, values: np.ndarray, cluster: np.ndarray) -> list[float]:
        """Mean in each true cluster, NaN for a cluster without samples; `cluster` [len(clients)]."""
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
    """Evaluate each client's model on its own samples.

    With `weighting` "batch_means", scores are means of the means of batches, as in the published code.
    """
    losses, correct, accuracy = (np.zeros(len(clients)) for _ in range(3))
    top5 = np.full(len(clients), math.nan)
    count = rows.count[clients]

    def score(now: slice) -> None:
        ids = torch.from_numpy(clients[now]).to(rows.x.device)
        width = max(1, int(count[now].max()))
        x, y = rows.gather(torch.from_numpy(rows.index[clients[now], :width]).to(rows.x.device))
        with torch.no_grad():
            outputs = predict(method, state, pool_of_client[ids], ids, x, vectorised)
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
    pool_of_client: Tensor,
    cluster: Tensor,
    *,
    loss: Loss,
    chunk: int,
    vectorised: bool,
    map: Map,
) -> Scores:
    """Evaluate each client's model on the global test set under the shift of its true cluster.

    Equal models of one cluster are evaluated once. Vectorised clients share the samples, so the common part of their
    models (e.g. FLoRAL's base) is applied once for all of them.
    """
    clients = len(cluster)
    same = identical_models(method, state, pool_of_client, cluster)
    personal = private_share(method, state) >= MIN_PERSONAL_SHARE
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
            for slice_x, slice_y in zip(x.split(step), y.split(step), strict=True):
                with torch.no_grad():
                    outputs = predict(method, state, pool_of_client[ids], ids, slice_x, vectorised, same_x=True)
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
    """Share of PRIVATE values among all values that a client sees."""
    private_count = count = 0
    for name, group in method.groups.items():
        private = group.scope is Scope.PRIVATE
        seen = sum(value[0].numel() if private else value.numel() for value in state.values[name].values())
        private_count, count = private_count + seen * private, count + seen
    return private_count / max(1, count)


def identical_models(method: Method, state: State, pool_of_client: Tensor, cluster: Tensor) -> np.ndarray:
    """[K] for each client, the first client of its true cluster with the same model.

    Models are the same if their PRIVATE values and their fixed clusters are equal.
    """
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


def predict(
    method: Method, state: State, pools: Tensor, clients: Tensor, x: Tensor, vectorised: bool, same_x: bool = False
) -> Tensor:
    """Outputs [m, B, outputs] of m clients on x [m, B, ...], or on the same x [B, ...] with `same_x`."""
    seen, axes = view(method, state.values, pools, clients)
    one_model = same_x and set(axes.values()) <= {None}
    if vectorised and not one_model:
        serve = torch.vmap(
            lambda seen, x: method.predict(seen, x, None, None)[0], in_dims=(dims(axes, seen), None if same_x else 0)
        )
        return serve(seen, x)
    outputs = [
        method.predict(client_view(seen, axes, k), x if same_x else x[k], None, None)[0] for k in range(len(clients))
    ]
    return torch.stack(outputs)


def sample_scores(loss: Loss, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of each sample, both [m, B].

    The accuracy is 0 or 1; for text, the share of correct tokens; for regression, 0.
    """
    losses = sample_losses(loss, outputs.flatten(0, 1), y.flatten(0, 1)).reshape(y.shape[:2])
    if loss == "mse":
        return losses, torch.zeros_like(losses)
    hit = (outputs.argmax(-1) == y).to(losses.dtype)
    return losses, hit.mean(-1) if loss == "token_cross_entropy" else hit


def tokens_of(loss: Loss, y: Tensor) -> int:
    """Number of labels of one sample of y [N, …]: T for text, otherwise 1."""
    return y.shape[1] if loss == "token_cross_entropy" else 1


def perplexity(loss: float) -> float:
    """Perplexity, the exponential of a mean cross-entropy per token; infinite above LARGEST_EXPONENT."""
    return math.exp(loss) if loss < LARGEST_EXPONENT else math.inf if loss == loss else math.nan


def near_hits(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor | None:
    """Top-k accuracy of each sample, [m, B] of 0 and 1 (for text, the share of tokens).

    None for regression, or if there are at most TOP_K classes. The function counts the classes with a logit at most
    that of the label, so a tie counts as a hit and a NaN does not.
    """
    if loss == "mse" or (classes := outputs.shape[-1]) <= TOP_K:
        return None
    below = outputs <= outputs.gather(-1, y.unsqueeze(-1))
    near = (below.sum(-1) > classes - TOP_K).to(outputs.dtype)
    return near.mean(-1) if loss == "token_cross_entropy" else near


def sample_weights(count: np.ndarray, width: int, batch: int) -> np.ndarray:
    """Weights [m, width] of each client's samples, which sum to 1.

    Each batch of `batch` samples has the same total weight. With `batch` = `width`, all samples have the same weight.
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
    """Weighted sum [m] of values [m, B]."""
    return (values.cpu().double().numpy() * weight).sum(1)


# ---------------------------------------------------------------------------------------------- routes


def served_routes(
    method: Method, state: State, pool_of_client: Tensor, clients: int, clusters: int
) -> np.ndarray | None:
    """Routes π [K, C] of all clients, one-hot if the method fixes their clusters; None for a method without routes."""
    if method.routing.cluster_of_client is not None:
        return (method.routing.cluster_of_client.cpu().numpy()[:, None] == np.arange(clusters)).astype(float)
    log_route = method.routing.served_log_route or method.routing.log_route
    if log_route is None:
        return None
    ids = torch.arange(clients, device=pool_of_client.device)
    seen, axes = view(method, state.values, pool_of_client, ids)
    return log_routes(log_route, seen, axes, clients).double().exp().cpu().numpy()


def route_metrics(route: np.ndarray, cluster: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Compare the routes [K, C] with the true clusters: ARI of argmax π, mean entropy in nats, and mismatch.

    mismatch = mean over clusters of ‖p̂(k|c) - p*(k|c)‖₁ with p̂ ∝ n_k π_kc and p* ∝ n_k over the true members, after
    the best matching relabelling of clusters. 0 is perfect, 2 the worst, 1 for a cluster without a counterpart.
    With one true cluster and C > 1, only the entropy is returned, because there are no clusters to recover.
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
    """Adjusted Rand index of two labellings: 1 if equal up to a relabelling, about 0 at random.

    Source: Hubert and Arabie 1985.
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

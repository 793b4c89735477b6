"""Frames of clients' routes (their weights of the learned clusters), with learned clusters matched to the true ones."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.summarise import done_clients


def last_routes(
    collected: Collected, configuration: Configuration, methods: list[str]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the clients' routes (weights of the learned clusters) at the last round, and the seed of each method.

    The seed is the first one that did not diverge. The frame has one row per method, client and learned cluster.
    Columns: method_id, position (of the client, sorted by true cluster), cluster (learned), weight, true_cluster. If
    the data name their clients, there is also the column name.

    Learned clusters have arbitrary numbers. They are renumbered to match the true clusters as well as possible.
    """
    rows = done_clients(collected, configuration)
    if rows.is_empty():
        return rows, {}
    rows = rows.filter(pl.col("method_id").is_in(methods) & pl.col("route").is_not_null())
    frames, seeds = [], {}
    for (method,), clients in rows.group_by("method_id", maintain_order=True):
        seeds[str(method)] = seed = clients["seed"].min()
        clients = clients.filter(pl.col("seed") == seed).sort("cluster", "client")
        weights = np.array(clients["route"].to_list())
        truth = clients["cluster"].to_numpy()
        order = _matched_order(weights, truth)
        positions, clusters = np.indices(weights.shape)
        named = {"name": np.repeat(clients["name"].to_numpy(), weights.shape[1])} if _named(clients) else {}
        frames.append(
            pl.DataFrame({
                "method_id": [str(method)] * weights.size, "position": positions.ravel(), "cluster": clusters.ravel(),
                "weight": weights[:, order].ravel(), "true_cluster": np.repeat(truth, weights.shape[1]), **named,
            })
        )  # fmt: skip
    return (pl.concat(frames, how="diagonal") if frames else pl.DataFrame()), seeds


def routes_over_rounds(rows: pl.DataFrame, clients: int, rounds: int) -> tuple[pl.DataFrame, float]:
    """Return one run's routes over rounds, and the share of clients in the right learned cluster at the last round.

    A client is in the learned cluster to which it gives its largest weight. This cluster is the right one if it matches
    the client's true cluster. `rows` has the columns round, client, cluster (true) and route (weights). The frame has
    at most `rounds` rounds, and at most `clients` clients of each true cluster. The share counts all clients.

    Columns of the frame: round, until (the next round in the frame), position (of the client, sorted by true cluster),
    client, true_cluster, cluster (learned, renumbered to match the true clusters at the last round), weight (of this
    cluster).
    """
    last = rows.filter(pl.col("round") == rows["round"].max())
    weights, truth = np.array(last["route"].to_list()), last["cluster"].to_numpy()
    new_numbers = np.argsort(_matched_order(weights, truth))
    matched_share = float((new_numbers[weights.argmax(1)] == truth).mean())
    recorded = rows["round"].unique().sort().to_list()
    positions = np.linspace(0, len(recorded) - 1, min(rounds, len(recorded))).astype(int)
    thinned = sorted({recorded[position] for position in positions})
    end = 2 * thinned[-1] - thinned[max(0, len(thinned) - 2)]
    until = dict(zip(thinned, [*thinned[1:], end], strict=True))
    order = last.sort("cluster", "client").group_by("cluster", maintain_order=True).head(clients)["client"].to_list()
    place = {client: position for position, client in enumerate(order)}
    selected = rows.filter(pl.col("client").is_in(order) & pl.col("round").is_in(thinned))
    heaviest = pl.col("route").list.arg_max().cast(pl.Int64)
    return selected.select(
        "round", pl.col("round").replace_strict(until).alias("until"),
        pl.col("client").replace_strict(place).alias("position"), "client", pl.col("cluster").alias("true_cluster"),
        heaviest.replace_strict(dict(enumerate(new_numbers.tolist()))).alias("cluster"),
        pl.col("route").list.max().round(3).alias("weight"),
    ).sort("position", "round"), matched_share  # fmt: skip


def _named(clients: pl.DataFrame) -> bool:
    return bool(clients["name"].is_not_null().all())


def _matched_order(weights: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Match learned clusters to true clusters, and return the learned clusters [C] in the order of their true clusters.

    Clients give the largest possible total weight to the learned clusters that match their true clusters. weights:
    routes [K, C]. truth: true cluster of each client [K]. K is the number of clients, and C the number of learned
    clusters.
    """
    total = np.zeros((max(int(truth.max()) + 1, weights.shape[1]), weights.shape[1]))
    np.add.at(total, truth, weights)
    true, learned = linear_sum_assignment(-total)
    return learned[np.argsort(true)]

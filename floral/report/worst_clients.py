"""Accuracy of the worst 10 % of clients and of the worst true cluster, beside what chance alone would give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from floral.core.units import decile_count
from floral.report import statistics
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.statistics import NullBand
from floral.report.summarise import done_clients, methods_without_mean

MAX_NAMED_CLIENTS = 5
"""Number of clients with the lowest accuracy that are named for each method."""
WorstOf = Literal["decile", "cluster"]


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The accuracy (0–1) of one method on its worst clients for each seed, and what chance alone would give.

    `observed` is seed → accuracy, measured on the clients' own test samples. `null` has the mean and the range that
    this accuracy would have by chance if all clients were equally accurate.
    """

    method: str
    observed: dict[int, float]
    null: NullBand

    @property
    def below_chance(self) -> int:
        """The number of seeds whose accuracy is lower than the 95 % range of chance."""
        return sum(value < self.null.low for value in self.observed.values())


def worst(collected: Collected, configuration: Configuration, kind: WorstOf) -> list[Worst]:
    """Return each method's accuracy on its worst clients, and the accuracy that chance alone would give.

    `kind` selects the worst 10 % of clients (their mean accuracy) or the worst true cluster (the share of correct
    predictions on all its samples). Accuracies are those of the last round, on the clients' own test samples. The list
    is empty for regression. It is also empty for the worst cluster if all clients are in one cluster.

    For chance alone, all clients are assumed to be equally accurate: each predicts correctly with the method's share of
    correct predictions over all clients and seeds. The numbers of samples are those of the first seed. Clients' own
    samples are disjoint, so that their errors are independent under this assumption.
    """
    rows = done_clients(collected, configuration)
    if configuration.metric == "loss" or rows.is_empty() or (kind == "cluster" and rows["cluster"].n_unique() == 1):
        return []
    excluded = methods_without_mean(collected, configuration)
    rows = rows.filter((pl.col("own_rows") > 0) & ~pl.col("method_id").is_in(excluded))
    groups = rows.group_by("method_id", "seed", "client" if kind == "decile" else "cluster", maintain_order=True)
    hits = groups.agg(pl.col("own_rows", "own_correct").sum())
    hits = hits.with_columns(accuracy=pl.col("own_correct") / pl.col("own_rows"))
    result = []
    for (method,), method_hits in hits.group_by("method_id", maintain_order=True):
        seeds = method_hits.partition_by("seed", maintain_order=True)
        samples = seeds[0]["own_rows"].to_list()
        lowest = decile_count(len(samples)) if kind == "decile" else 1
        observed = {frame["seed"][0]: float(statistics.worst_mean(frame["accuracy"], lowest)) for frame in seeds}
        common = int(method_hits["own_correct"].sum()) / int(method_hits["own_rows"].sum())
        null = statistics.binomial_null(samples, common, lowest)
        result.append(Worst(method=str(method), observed=observed, null=null))
    return result


def lowest_named(collected: Collected, configuration: Configuration) -> dict[str, list[tuple[str, float]]]:
    """Return each method's clients with the lowest accuracy, as method → list of (name of the client, accuracy).

    The accuracy (0–1) of a client is its mean over the seeds in which it takes part. The list has the lowest first. The
    result is empty if the data do not name their clients, or for regression.
    """
    rows = done_clients(collected, configuration)
    if configuration.metric == "loss" or rows.is_empty():
        return {}
    rows = rows.filter(pl.col("name").is_not_null() & pl.col("accuracy").is_finite())
    means = rows.group_by("method_id", "name", maintain_order=True).agg(pl.col("accuracy").mean())
    lowest = means.sort("accuracy", "name").group_by("method_id", maintain_order=True).head(MAX_NAMED_CLIENTS)
    result: dict[str, list[tuple[str, float]]] = {}
    for method, name, accuracy in lowest.select("method_id", "name", "accuracy").iter_rows():
        result.setdefault(method, []).append((name, accuracy))
    return result

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
    is empty for regression.

    For chance alone, all clients are assumed to be equally accurate: each predicts correctly with the method's share of
    correct predictions over all clients and seeds. The numbers of samples are those of the first seed. Clients' own
    samples are disjoint, so that their errors are independent under this assumption.
    """
    rows = done_clients(collected, configuration)
    if configuration.metric == "loss" or rows.is_empty():
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
        null = statistics.binomial_null(samples, common, lowest, draws=1000)
        result.append(Worst(method=str(method), observed=observed, null=null))
    return result

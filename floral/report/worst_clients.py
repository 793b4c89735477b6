"""The worst decile of clients and the worst true cluster, compared with chance."""

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
    """The accuracy (0–1) of one method's worst decile or cluster by seed, and its distribution by chance.

    By chance means that all clients have the same accuracy. Accuracy is measured on the clients' own test samples.
    """

    method: str
    observed: dict[int, float]
    null: NullBand

    @property
    def below_chance(self) -> int:
        """The number of seeds below the central 95 % of the distribution."""
        return sum(value < self.null.low for value in self.observed.values())


def worst(collected: Collected, configuration: Configuration, kind: WorstOf) -> list[Worst]:
    """Return each method's worst decile of clients or worst true cluster at the last round. Empty for regression.

    Only the clients' own test samples are used: they are disjoint, so that errors of clients are independent under the
    null hypothesis. A decile's accuracy is the mean over its clients; a cluster's is taken over all its samples. Under
    the null hypothesis all clients have the accuracy Σ hits / Σ samples over the method's seeds, and the numbers of
    samples of the first seed.
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

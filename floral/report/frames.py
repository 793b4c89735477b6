"""Frames that figures plot: learning curves, results of single clients, and clients that join after training."""

from __future__ import annotations

import polars as pl

from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.summarise import done_clients, methods_without_mean, result_unit

UNSEEN_KINDS = {"seen_cluster": "clients of a cluster seen in training", "new_concept": "clients of a new concept"}
"""Kinds of unseen clients, and their names in figures."""


def curve(collected: Collected, configuration: Configuration, metric: str, x: str, factor: float) -> pl.DataFrame:
    """Return each method's learning curve: one row per method and evaluated round.

    `x` is the quantity on the x axis: a column of `collected.curves`, such as `bytes`. Columns of the result:
    method_id, x (mean over seeds), mean, low and high (mean, smallest and largest value of the metric over seeds), n
    (number of seeds with a finite value). The mean of errors (regression) is geometric. Values of the metric are
    multiplied by `factor`.
    """
    if collected.curves.is_empty():
        return pl.DataFrame()
    rows = collected.curves.filter(
        (pl.col("configuration") == configuration.id) & (pl.col("metric") == metric) & pl.col("value").is_finite()
    )
    value = pl.col("value") * factor
    mean = value.log().mean().exp() if result_unit(configuration).logarithmic else value.mean()
    return (
        rows.group_by("method_id", "round", maintain_order=True)
        .agg(x=pl.col(x).mean(), mean=mean, low=value.min(), high=value.max(), n=pl.len())
        .sort("method_id", "round")
        .select("method_id", pl.col("x", "mean", "low", "high").cast(pl.Float64).round_sig_figs(6), "n")
    )


def spread(collected: Collected, configuration: Configuration, column: str, factor: float) -> pl.DataFrame:
    """Return the results of single clients, for all runs that did not diverge. There is one row per run and client.

    Columns: method_id, seed, value (the client's value in `column`, times `factor`). Values that are not finite are
    left out.
    """
    rows = done_clients(collected, configuration)
    if rows.is_empty():
        return rows
    rows = rows.select("method_id", "seed", value=pl.col(column) * factor)
    return rows.filter(pl.col("value").is_not_null() & pl.col("value").is_finite())


def unseen_accuracy(collected: Collected, configuration: Configuration, kind: str) -> pl.DataFrame:
    """Return the accuracy (in per cent) of clients that join after training, by number of labelled samples.

    `kind` selects the clients. Columns: method_id, x (number of labelled samples), mean, low and high (mean, smallest
    and largest value over seeds), seeds (list of the seeds' values). Methods with a diverged seed can be left out (see
    `methods_without_mean`).
    """
    rows = collected.unseen
    if rows.is_empty():
        return rows
    is_kind = (pl.col("configuration") == configuration.id) & (pl.col("kind") == kind)
    rows = rows.filter(is_kind & pl.col("accuracy").is_finite())
    rows = rows.filter(~pl.col("method_id").is_in(methods_without_mean(collected, configuration)))
    value = 100 * pl.col("accuracy")
    return rows.group_by("method_id", pl.col("n").cast(pl.Float64).alias("x"), maintain_order=True).agg(
        mean=value.mean().round(6), low=value.min().round(6), high=value.max().round(6), seeds=value
    )

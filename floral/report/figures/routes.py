"""Figures of the clients' routes (their weights of the learned clusters): at the last round, and over rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from floral.report.charts import routes as charts
from floral.report.charts.axes import Axis
from floral.report.charts.curves import curves
from floral.report.charts.render import Figure, Preset, render
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.figures.wording import ranking
from floral.report.frames import curve
from floral.report.route_frames import last_routes, routes_over_rounds
from floral.report.style import Style
from floral.report.tables import number

MAX_CLIENTS_PER_CLUSTER, MAX_ROUNDS = 10, 40
"""Largest numbers of clients and rounds in the figure of routes over rounds: it has a rectangle for each pair."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A measure of the clients' routes, such as the adjusted Rand index, with the texts and the axis of its figure."""

    metric: str
    title: str
    subtitle: str
    axis: Axis
    higher_is_better: bool


RECOVERY = {
    "recovery": Recovery(
        metric="route/ari", title="Adjusted Rand index of the routes against the true clusters",
        subtitle="adjusted Rand index: 1 is recovered, 0 is chance",
        axis=Axis(title="Adjusted Rand index", limits=(-1, 1)),
        higher_is_better=True,
    ),
    "mismatch": Recovery(
        metric="route/mismatch", title="Mismatch of p(k|c) with the true clusters",
        subtitle="mismatch of p(k|c): 0 is recovered, 2 the worst", axis=Axis(title="Mismatch", limits=(0, 2)),
        higher_is_better=False,
    ),
    "entropy": Recovery(
        metric="route/entropy", title="Mean entropy of the clients' routes in nats",
        subtitle="entropy of a client's route in nats: 0 is certain",
        axis=Axis(title="Entropy, nats", limits=(0, math.inf)),
        higher_is_better=False,
    ),
}  # fmt: skip


def routes(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset
) -> Figure | None:
    """Plot the routes (weights of the learned clusters) of all clients at the last round, one heat map per method."""
    learned = [style.id for style in styles if style.group == "method"]
    frame, seeds = last_routes(collected, configuration, learned)
    if frame.is_empty():
        return None
    clients, clusters = configuration.task.clients, int(frame["cluster"].max()) + 1  # type: ignore[call-overload]
    chart = charts.routes(frame, styles, clients, clusters, preset)
    names = {style.id: style.short for style in styles}
    matched = frame.group_by("method_id", maintain_order=True).agg(
        pl.col("weight").filter(pl.col("cluster") == pl.col("true_cluster")).mean()
    )
    alt_text = (
        f"Routes of {clients} clients, {configuration.title}. Mean weight of the cluster that matches the true one: "
    )
    alt_text += ", ".join(f"{names[method]} {number(weight, 2)}" for method, weight in matched.iter_rows()) + "."
    subtitle = "clients by true cluster × learned clusters, seed " + ", ".join(map(str, sorted(set(seeds.values()))))
    see = f"Mean weight of the cluster that matches the true one: {ranking(dict(matched.iter_rows()), styles, 2)}."
    return render(chart, preset, f"routes_{configuration.id}", configuration.title, subtitle, alt_text, see)


def over_rounds(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset
) -> Figure | None:
    """Plot the learned cluster to which each client gives the largest weight, over the rounds of one run.

    Only the first MAX_CLIENTS_PER_CLUSTER clients of each true cluster are drawn.
    """
    rows = collected.routes
    if rows.is_empty() or (rows := rows.filter(pl.col("configuration") == configuration.id)).is_empty():
        return None
    rows = rows.filter((pl.col("method_id") == rows["method_id"][0]) & pl.col("route").is_not_null())
    clusters = int(rows["route"].list.len().max() or 0)  # type: ignore[arg-type]
    if not 2 <= clusters <= len(charts.HUES):
        return None
    frame, matched_share = routes_over_rounds(rows, MAX_CLIENTS_PER_CLUSTER, MAX_ROUNDS)
    keys = ["configuration", "method_id", "seed"]
    names = collected.clients.join(rows.select(keys).unique(), on=keys).select("client", "name")
    if names["name"].is_not_null().all():
        frame = frame.join(names, on="client", how="left", maintain_order="left")
    style, seed = next(style for style in styles if style.id == rows["method_id"][0]), rows["seed"][0]
    see = f"At the end, {100 * matched_share:.0f} % of the clients give their largest weight to the learned cluster"
    see += " that matches their true cluster."
    alt_text = f"Cluster with the largest weight over rounds, {style.short}, {configuration.title}. {see}"
    subtitle = [
        f"{style.short}, seed {seed}: learned cluster with the largest weight,",
        "darker for a larger weight",
    ]
    chart = charts.routes_over_rounds(frame, clusters, preset)
    return render(chart, preset, f"followed_{configuration.id}", configuration.title, subtitle, alt_text, see)


def recovery(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset, kind: str
) -> Figure | None:
    """Plot one measure of the clients' routes against rounds. Oracles, which know the true clusters, are left out.

    kind: the measure, a key of RECOVERY.
    """
    measure = RECOVERY[kind]
    learned = [style for style in styles if style.group != "oracle"]
    frame = curve(collected, configuration, measure.metric, "round", 1)
    if not frame.is_empty():
        frame = frame.filter(pl.col("method_id").is_in([style.id for style in learned]))
    if frame.is_empty():
        return None
    names = {style.id: style.short for style in styles}
    last = frame.group_by("method_id", maintain_order=True).last()
    ends = dict(last.select("method_id", "mean").iter_rows())
    alt_text = f"{measure.title}, {configuration.title}; at the end: "
    alt_text += ", ".join(f"{names[method]} {number(value, 2)}" for method, value in ends.items()) + "."
    see = f"At the end: {ranking(ends, styles, 2, measure.higher_is_better)}."
    chart = curves(frame, learned, Axis(title="Round"), measure.axis, preset)
    return render(chart, preset, f"{kind}_{configuration.id}", configuration.title, measure.subtitle, alt_text, see)

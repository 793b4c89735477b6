"""Figures of clients: the spread of their results, the worst clients, and clients that join after training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from floral.core.intervals import Interval
from floral.report.charts.axes import Axis
from floral.report.charts.curves import curves
from floral.report.charts.render import Figure, Preset, render
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.figures.axis_range import LIMITS
from floral.report.figures.method_rows import method_rows
from floral.report.figures.wording import ranking, values_text
from floral.report.frames import UNSEEN_KINDS, unseen_accuracy
from floral.report.frames import spread as spread_frame
from floral.report.style import Style
from floral.report.summarise import result_unit
from floral.report.worst_clients import WorstOf
from floral.report.worst_clients import worst as worst_of

MAX_CLIENT_POINTS = 60
"""Up to this number of clients, each is also plotted as a point."""


def spread(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset
) -> Figure | None:
    """Plot the 5, 25, 50, 75 and 95 % quantiles of the clients' results, in one row per method."""
    unit = result_unit(configuration)
    clients = spread_frame(collected, configuration, configuration.metric, unit.scale)
    if clients.is_empty():
        return None
    marks, quantiles = [], {}
    for (method,), rows in clients.group_by("method_id", maintain_order=True):
        low, first, median, third, high = np.quantile(rows["value"].to_numpy(), [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
        quantiles[str(method)] = Interval(mean=median, low=low, high=high, n=rows.height)
        marks += [(method, "whisker", low, high), (method, "box", first, third), (method, "median", median, None)]
        if configuration.task.clients <= MAX_CLIENT_POINTS:
            first_seed = rows.filter(pl.col("seed") == pl.col("seed").min())
            marks += [(method, "point", value, None) for value in first_seed["value"].unique(maintain_order=True)]
    alt_text = values_text(
        f"Clients' {configuration.metric}, median and 5 to 95 %", configuration, styles, quantiles, unit.digits
    )
    title, subtitle = f"{unit.title}, of single clients", "clients of all seeds: 5, 25, 50, 75 and 95 %"
    reached = {n: ends.low if unit.higher_is_better else ends.high for n, ends in quantiles.items()}
    reached = {method: end for method, end in reached.items() if end is not None}
    ranked = ranking(reached, styles, unit.digits, unit.higher_is_better)
    see = f"95 % of the clients reach at {'least' if unit.higher_is_better else 'most'}: {ranked}."
    return method_rows(marks, styles, configuration, preset, "spread", title, unit.digits, subtitle, alt_text, see)


def worst(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset, kind: WorstOf
) -> Figure | None:
    """Plot each method's accuracy on its worst clients, beside the range that chance alone would give.

    The worst clients are the worst 10 % of the clients, or the worst true cluster. The range of chance assumes that all
    clients are equally accurate.
    """
    if configuration.metric == "loss":
        return None
    by_method = worst_of(collected, configuration, kind)
    if not by_method:
        return None
    marks = []
    for item in by_method:
        seeds = [100 * value for value in item.observed.values()]
        marks += [
            (item.method, "band", 100 * item.null.low, 100 * item.null.high),
            (item.method, "middle", 100 * item.null.mean, None),
        ]
        marks += [(item.method, "tick", value, None) for value in seeds if len(seeds) > 1]
        marks.append((item.method, "dot", sum(seeds) / len(seeds), None))
    names = {style.id: style.short for style in styles}
    alt_text = f"Worst {kind}, {configuration.title}. Seeds below the range of chance: "
    alt_text += ", ".join(f"{names[item.method]} {item.below_chance} of {len(item.observed)}" for item in by_method)
    alt_text += "."
    subtitle = "dot: mean; ticks: seeds; grey: range of chance for one seed"
    below = [names[item.method] for item in by_method if item.below_chance == len(item.observed)]
    see = f"Below the range of chance in every seed: {', '.join(below) or 'none'}."
    title = f"Accuracy of the worst {kind}, %"
    return method_rows(marks, styles, configuration, preset, f"worst_{kind}", title, 1, subtitle, alt_text, see)


def unseen(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset, kind: str
) -> Figure | None:
    """Plot the accuracy of clients that join after training, against their number of labelled samples."""
    frame = unseen_accuracy(collected, configuration, kind)
    if frame.is_empty():
        return None
    last = frame.group_by("method_id", maintain_order=True).last()
    last = last.sort("mean", descending=True, maintain_order=True)
    names = {style.id: style.short for style in styles}
    alt_text = f"Accuracy of {UNSEEN_KINDS[kind]} that join after training, against labelled samples, "
    alt_text += f"{configuration.title}. From best to worst with all samples: "
    alt_text += ", ".join(names[method] for method in last["method_id"]) + "."
    across = Axis(title="Labelled samples of a client", ticks=tuple(frame["x"].unique().sort().to_list()))
    up = Axis(title="Accuracy, %", limits=LIMITS["accuracy"])
    chart = curves(frame.drop("seeds"), styles, across, up, preset)
    subtitle = [f"Accuracy, %, of {UNSEEN_KINDS[kind]}", "mean and range of the seeds"]
    see = f"With all samples: {ranking(dict(last.select('method_id', 'mean').iter_rows()), styles, 1)}."
    return render(chart, preset, f"unseen_{kind}_{configuration.id}", configuration.title, subtitle, alt_text, see)

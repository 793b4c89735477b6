"""Charts with one line per method, over rounds, bytes, forward-backward passes or labelled samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import altair as alt
import polars as pl

from floral.report.charts.axes import Axis, tick_options, value_domain, vega_axis
from floral.report.charts.render import INK, PANEL_PX, Drawing, Scale, method_colour
from floral.report.style import Style

LABEL_GAP_PX = 11.5
"""Smallest distance of two labels."""


def curves(frame: pl.DataFrame, styles: Sequence[Style], x: Axis, y: Axis) -> Drawing:
    """Draw one line per method (its mean over seeds), with a band (range over seeds) and its name at the right end.

    Columns of frame: method_id, x, mean, and the ends low and high of the band. x is a number of rounds, bytes, passes
    or labelled samples.

    If x does not change during a run (such as 0 bytes), the method's last mean is drawn as a horizontal line. For all
    other methods, points with x <= 0 are left out if the x axis is logarithmic.
    """
    drawn = [style for style in styles if style.id in set(frame["method_id"])]
    has_several_x = pl.col("x").n_unique().over("method_id") > 1
    moving = frame.filter(has_several_x & (pl.col("x") > 0) if x.log else has_several_x)
    level = frame.filter(~has_several_x).group_by("method_id", maintain_order=True).last()
    start, stop = (float(moving["x"].min()), float(moving["x"].max())) if moving.height else (1.0, 10.0)  # type: ignore[arg-type]
    ends = pl.concat([moving.group_by("method_id", maintain_order=True).last(), level.with_columns(x=pl.lit(stop))])
    low, high = value_domain(frame, y)
    height = max(200, 12 * len(drawn) + 12)
    names = _labels(ends, drawn, low, high, height, y.log)

    dash = alt.StrokeDash(
        "method_id:N",
        scale=alt.Scale(
            domain=[style.id for style in drawn], range=[[4, 2] if style.dashed else [1, 0] for style in drawn]
        ),
        legend=None,
    )
    y_scale = alt.Scale(domain=[low, high], type="log" if y.log else "linear", nice=False)
    kind: Literal["linear", "log", "sqrt"] = "sqrt" if x.ticks else "log" if x.log else "linear"
    horizontal = alt.X(
        "x:Q",
        scale=alt.Scale(domain=[start, stop], type=kind, nice=False),
        axis=vega_axis(
            title=x.title,
            format=x.format,
            grid=False,
            **({"values": list(x.ticks)} if x.ticks else tick_options(start, stop, x.log)),
        ),
    )
    vertical = alt.Y(
        "mean:Q", scale=y_scale, axis=vega_axis(title=None, format=y.format, tickCount=5, domain=False, ticks=False)
    )
    colour = method_colour(drawn)
    lower, upper = alt.Y("low:Q", scale=y_scale), alt.Y2("high:Q")
    base = alt.Chart(alt.NamedData("lines"))
    labels, beside = alt.Chart(alt.NamedData("labels")), alt.Y("label_y:Q", scale=y_scale)
    layers = [
        base.mark_area(opacity=0.13, clip=True).encode(horizontal, lower, upper, colour),
        base.mark_line(strokeWidth=1.6, clip=True, strokeJoin="round").encode(horizontal, vertical, colour, dash),
        alt.Chart(alt.NamedData("levels")).mark_rule(strokeWidth=1.2, opacity=0.8).encode(vertical, colour, dash),
        labels.mark_rule(strokeWidth=0.6, opacity=0.6).encode(
            alt.X("x:Q"), alt.Y("mean:Q", scale=y_scale), alt.X2(value=PANEL_PX + 5), alt.Y2("label_y:Q"), colour
        ).properties(name="leader"),
        labels.mark_circle(size=26, opacity=1).encode(alt.X(value=PANEL_PX + 8), beside, colour).properties(name="key"),
        labels.mark_text(align="left", fontSize=10, color=INK).encode(
            alt.X(value=PANEL_PX + 14), beside, text="short:N"
        ),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=PANEL_PX, height=height)
    across = Scale(title=x.title, domain=(start, stop), length=PANEL_PX, type=kind)
    up = Scale(title=y.title, domain=(low, high), length=height, type="log" if y.log else "linear", upward=True)
    data = {"lines": moving, "levels": level, "labels": names}
    return Drawing(chart=chart, data=data, table=frame, plane={"x": across, "y": up})


def _labels(
    ends: pl.DataFrame, styles: Sequence[Style], low: float, high: float, height: int, log: bool
) -> pl.DataFrame:
    """Return the right ends of the lines, each with a height `label_y` for its label, so that labels do not overlap."""
    short = {style.id: style.short for style in styles}
    scale = math.log if log else float
    bottom, span = scale(low), scale(high) - scale(low)
    rows = sorted(ends.iter_rows(named=True), key=lambda row: -row["mean"])
    places = []
    for row in rows:
        preferred = height * (1 - (scale(row["mean"]) - bottom) / span)
        places.append(max(preferred, places[-1] + LABEL_GAP_PX if places else 0))
    limit = float(height)
    for position in range(len(places) - 1, -1, -1):
        places[position] = min(places[position], limit)
        limit = places[position] - LABEL_GAP_PX
    moved = [bottom + span * (1 - place / height) for place in places]
    values = [math.exp(value) if log else value for value in moved]
    return pl.DataFrame(rows, schema=ends.schema).with_columns(
        label_y=pl.Series(values, dtype=pl.Float64), short=pl.col("method_id").replace_strict(short)
    )

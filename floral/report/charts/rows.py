"""Charts with one row per method: results as dots, intervals, boxes and ticks, or mean ranks as dots."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import altair as alt
import polars as pl

from floral.report.charts.axes import Axis, tick_options, vega_axis
from floral.report.charts.render import (
    BAND,
    INK,
    MUTED,
    NAME_POINTS,
    ROW_POINTS,
    Drawing,
    Preset,
    Scale,
    method_colour,
    name_width,
    style_frame,
)
from floral.report.style import Style

MAX_ROWS = 36
"""Maximum number of methods of a chart with one column. Their names fit the height of a page in their full size."""


def rows(frame: pl.DataFrame, styles: Sequence[Style], x: Axis, domain: tuple[float, float], preset: Preset) -> Drawing:
    """Draw the values of each method in one row, as dots, intervals, boxes and ticks. Methods are grouped by family.

    The frame has one row per drawn shape. Its columns are method_id, kind (the shape), value, value2 and label.

    The kinds `whisker`, `box`, `interval` and `band` extend from value to value2. The kinds `point`, `tick`, `median`,
    `dot`, `hollow` (a circle) and `middle` are drawn at value. The kinds `below` and `above` write the label at the
    lower or upper end of the axis, for a value outside the axis.
    """
    frame = frame.join(style_frame(styles), on="method_id", how="inner", maintain_order="left")
    drawn = [style for style in styles if style.id in set(frame["method_id"])]
    columns = side_by_side(drawn)
    several = len(columns) > 1
    width = (preset.several if several else preset.width) / len(columns) - name_width(drawn) - 22
    kind_of: Literal["linear", "log"] = "log" if x.log else "linear"
    scale, places = alt.Scale(domain=list(domain), nice=False, type=kind_of), tick_options(x, *domain)
    value = alt.X(
        "value:Q", scale=scale, axis=vega_axis(title=x.title, format=x.format, domain=False, ticks=False, **places)
    )
    name = alt.Y(
        "short:N",
        sort=[style.short for style in drawn],
        axis=alt.Axis(
            title=None,
            domain=False,
            ticks=False,
            labelLimit=150,
            labelColor=INK,
            labelPadding=5,
            labelFontSize=NAME_POINTS,
        ),
    )
    colour, end = method_colour(drawn), alt.X2("value2:Q")

    def marks(kind: str) -> alt.Chart:
        return alt.Chart().transform_filter(alt.datum.kind == kind)

    layers = {
        "band": marks("band").mark_bar(height=8, color=BAND, opacity=0.65).encode(value, name, end),
        "middle": marks("middle").mark_tick(height=8, thickness=0.8, color=MUTED).encode(value, name),
        "whisker": marks("whisker").mark_rule(strokeWidth=0.8).encode(value, name, end, colour),
        "box": marks("box").mark_bar(height=4.5, opacity=0.75).encode(value, name, end, colour),
        "point": marks("point").mark_circle(size=5, opacity=0.45).encode(value, name, colour),
        "interval": marks("interval").mark_rule(strokeWidth=1.6, opacity=0.8).encode(value, name, end, colour),
        "tick": marks("tick").mark_tick(height=6.5, thickness=0.8, opacity=0.9).encode(value, name, colour),
        "median": marks("median").mark_tick(height=6.5, thickness=1.4, color=INK).encode(value, name),
        "dot": marks("dot").mark_circle(size=24, opacity=1).encode(value, name, colour),
        "hollow": marks("hollow").mark_point(size=18, opacity=1, strokeWidth=1.2).encode(value, name, colour),
        "below": marks("below").mark_text(align="left", fontSize=7).encode(value, name, colour, text="label:N"),
        "above": marks("above").mark_text(align="right", fontSize=7).encode(value, name, colour, text="label:N"),
    }
    kinds = set(frame["kind"])
    chart = alt.layer(*(layer for kind, layer in layers.items() if kind in kinds), data=alt.NamedData("marks"))
    header = alt.Header(labelOrient="top", labelAnchor="start", title=None)
    chart = chart.properties(width=width, height=alt.Step(ROW_POINTS))

    def column(styles: Sequence[Style]) -> alt.FacetChart:
        groups = list(dict.fromkeys(style.group_title for style in styles))
        part = chart.transform_filter(alt.FieldOneOfPredicate("group", groups)) if several else chart
        facet = part.facet(row=alt.Row("group:N", sort=groups, header=header), spacing=3)
        return facet.resolve_scale(y="independent")

    drawing = alt.hconcat(*map(column, columns)) if several else column(drawn)
    along = Scale(title=x.title, domain=domain, length=width, type=kind_of)
    table = frame.drop("short", "group")
    return Drawing(chart=drawing, data={"marks": frame}, table=table, plane={"x": along}, several=several)


def side_by_side(styles: Sequence[Style]) -> list[list[Style]]:
    """Return the methods of each column of a chart: one column, or two if there are more than MAX_ROWS methods.

    The methods of a group stay together. The two columns have about the same number of methods.
    """
    groups: dict[str, list[Style]] = {}
    for style in styles:
        groups.setdefault(style.group_title, []).append(style)
    ends = list(itertools.accumulate(map(len, groups.values())))
    if len(styles) <= MAX_ROWS or len(ends) == 1:
        return [list(styles)]
    cut = min(range(len(ends) - 1), key=lambda group: abs(2 * ends[group] - len(styles)))
    members = list(groups.values())
    return [[style for group in part for style in group] for part in (members[: cut + 1], members[cut + 1 :])]


def ranks(frame: pl.DataFrame, styles: Sequence[Style], bars: Sequence[tuple[str, str]], preset: Preset) -> Drawing:
    """Draw a critical-difference diagram: one row per method, best first, with a dot at the method's mean rank.

    Columns of frame: method_id, rank. `styles` has the methods from the best mean rank to the worst. A vertical bar
    joins methods whose mean ranks do not differ significantly. `bars` has the first and the last method of each bar.
    """
    short = {style.id: style.short for style in styles}
    width = preset.width - name_width(styles) - 22 - 6 * len(bars)
    down = alt.Scale(domain=list(short.values()))
    name = alt.Y(
        "short:N",
        scale=down,
        axis=alt.Axis(
            title=None,
            domain=False,
            ticks=False,
            labelLimit=150,
            labelColor=INK,
            labelPadding=5,
            labelFontSize=NAME_POINTS,
            grid=True,
        ),
    )
    scale = alt.Scale(domain=[1, len(styles)], nice=False)
    across = alt.X("rank:Q", scale=scale, axis=vega_axis(title="Mean rank", grid=False, tickCount=5))
    marks, joined = alt.Chart(alt.NamedData("marks")), alt.Chart(alt.NamedData("bars"))
    layers = [
        marks.mark_circle(size=24, opacity=1).encode(across, name, method_colour(styles)),
        joined.mark_rule(strokeWidth=2, color=MUTED, strokeCap="round").encode(
            alt.X("place:Q", scale=None), alt.Y("first:N", scale=down), alt.Y2("last:N")
        ),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=width, height=alt.Step(ROW_POINTS))
    rows = frame.with_columns(short=pl.col("method_id").replace_strict(short), rank=pl.col("rank").round(6))
    ends = [
        {"first": short[first], "last": short[last], "place": width + 8 + 6 * number}
        for number, (first, last) in enumerate(bars)
    ]
    types = {"first": pl.String, "last": pl.String, "place": pl.Float64}
    return Drawing(chart=chart, data={"marks": rows, "bars": pl.DataFrame(ends, schema=types)})

"""Heat maps of clients' routes: the weights that a client gives to the learned clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from floral.report.charts.axes import vega_axis
from floral.report.charts.render import BAND, INK, MUTED, Drawing, Plane, Preset, Scale
from floral.report.style import Style

MIN_DRAWN_WEIGHT = 0.01
"""Smaller weights are left out: on screen they look like the background."""

HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7a00", "#444b8c")
"""Colours of learned clusters, distinct for colour-blind readers. Source: Okabe and Ito."""


def routes(frame: pl.DataFrame, styles: Sequence[Style], clients: int, clusters: int, preset: Preset) -> Drawing:
    """Draw one heat map per method with the clients' routes: the weights that a client gives to the learned clusters.

    There is one column per client, sorted by true cluster, and one row per learned cluster. A cell with a larger weight
    is darker. Columns of frame: method_id, position (of the client), cluster (learned), weight (0 to 1), true_cluster.
    Positions and clusters are counted from 0.
    """
    width, height = preset.width - 8, 8 * clusters
    edges = frame.group_by("true_cluster").agg(start=pl.col("position").min(), end=pl.col("position").max() + 1)
    edges = edges.sort("start").with_columns(
        middle=(pl.col("start") + pl.col("end")) / 2, name="true " + (pl.col("true_cluster") + 1).cast(pl.String)
    )
    across = {"type": "quantitative", "scale": {"domain": [0, clients], "nice": False}, "axis": None}
    down = {"type": "quantitative", "scale": {"domain": [clusters, 0], "nice": False}, "axis": None}
    depth = {"field": "weight", "type": "quantitative", "scale": {"domain": [0, 1], "range": [0, 1]}, "legend": None}
    ends = {
        "x": {"field": "position", **across}, "x2": {"field": "end"}, "y": {"field": "cluster", **down},
        "y2": {"field": "bottom"}, "fillOpacity": depth,
    }  # fmt: skip
    frame_ends = {"x": {"value": 0}, "x2": {"value": width}, "y": {"value": 0}, "y2": {"value": height}}
    around = [
        {
            "data": {"name": "borders"}, "mark": {"type": "rule", "color": MUTED, "strokeWidth": 0.6},
            "encoding": {"x": {"field": "start", **across}},
        },
        {
            "data": {"name": "outline"}, "encoding": frame_ends,
            "mark": {"type": "rect", "filled": False, "stroke": BAND, "strokeWidth": 0.6},
        },
    ]  # fmt: skip
    size = {"width": width, "height": height}
    panels: list[dict[str, Any]] = []
    for style in styles:
        if style.id in set(frame["method_id"]):
            cells_of_method = {
                "data": {"name": "cells"}, "transform": [{"filter": {"field": "method_id", "equal": style.id}}],
                "mark": {"type": "rect", "color": style.colour}, "encoding": ends,
            }  # fmt: skip
            panels.append({"title": style.short, **size, "layer": [cells_of_method, *around]})
    names = {
        "data": {"name": "edges"}, "mark": {"type": "text", "color": MUTED, "fontSize": 7}, **size, "height": 8,
        "encoding": {"x": {"field": "middle", **across}, "text": {"field": "name"}},
    }  # fmt: skip
    cells = frame.filter(pl.col("weight") >= MIN_DRAWN_WEIGHT).select(
        "method_id", "position", "cluster", pl.col("weight").round(3),
        end=pl.col("position") + 1, bottom=pl.col("cluster") + 1,
    )  # fmt: skip
    chart = {"vconcat": [*panels, names], "spacing": 5}
    data = {"cells": cells, "borders": edges.slice(1), "edges": edges, "outline": pl.DataFrame({"one": [1]})}
    plane: Plane = {
        "x": Scale(title="client", domain=(1, clients + 1), length=width),
        "y": Scale(title="learned cluster", domain=(1, clusters + 1), length=height),
    }
    return Drawing(chart=chart, data=data, table=frame, plane=plane)


def routes_over_rounds(frame: pl.DataFrame, clusters: int, preset: Preset) -> Drawing:
    """Draw a heat map of one run's routes: one row per client, sorted by true cluster, and one column per round.

    The colour shows the learned cluster with the client's largest weight, and the opacity shows this weight. Columns of
    frame: round, until (the next round in the frame), position (of the client), client, true_cluster, cluster (0 to
    C-1), weight (1/C to 1). C is the number of learned clusters.
    """
    clients = int(frame["position"].max()) + 1  # type: ignore[arg-type]
    start, stop = int(frame["round"].min()), int(frame["until"].max())  # type: ignore[arg-type]
    height, width = max(110, 4 * clients), preset.width - 40
    edges = frame.group_by("true_cluster").agg(top=pl.col("position").min(), bottom=pl.col("position").max() + 1)
    edges = edges.sort("top").with_columns(
        middle=(pl.col("top") + pl.col("bottom")) / 2, name="true " + (pl.col("true_cluster") + 1).cast(pl.String)
    )
    down = alt.Scale(domain=[clients, 0], nice=False)
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=[f"cluster {c + 1}" for c in range(clusters)], range=list(HUES[:clusters])),
        legend=alt.Legend(orient="bottom", title=None, columns=4, labelColor=INK, symbolType="square"),
    )
    along = alt.Scale(domain=[start, stop], nice=False)
    heat = alt.Chart(alt.NamedData("cells")).mark_rect().encode(
        alt.X("round:Q", scale=along, axis=vega_axis(title="Round", grid=False, tickCount=4)),
        alt.X2("until:Q"), alt.Y("position:Q", scale=down, axis=None), alt.Y2("below:Q"), colour,
        alt.FillOpacity("weight:Q", scale=alt.Scale(domain=[1 / clusters, 1], range=[0.2, 1]), legend=None),
    )  # fmt: skip
    borders = alt.Chart(alt.NamedData("borders")).mark_rule(color=INK, strokeWidth=0.8)
    borders = borders.encode(alt.Y("top:Q", scale=down, axis=None))
    names = alt.Chart(alt.NamedData("edges")).mark_text(color=MUTED, fontSize=7, align="left")
    names = names.encode(alt.X(value=width + 4), alt.Y("middle:Q", scale=down, axis=None), alt.Text("name:N"))
    chart = alt.layer(heat, borders, names).properties(width=width, height=height)
    cells = frame.select(
        "round", "until", "position", "weight", below=pl.col("position") + 1,
        name="cluster " + (pl.col("cluster") + 1).cast(pl.String),
    )  # fmt: skip
    return Drawing(chart=chart, data={"cells": cells, "borders": edges.slice(1), "edges": edges}, table=frame)

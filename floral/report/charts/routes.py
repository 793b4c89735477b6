"""Heat maps of clients' routes: the weights that a client gives to the learned clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from floral.report.charts.axes import vega_axis
from floral.report.charts.render import BAND, INK, MUTED, PANEL_PX, Drawing, Plane, Scale
from floral.report.style import Style

MIN_DRAWN_WEIGHT = 0.01
"""Smaller weights are left out: on screen they look like the background."""

HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7a00", "#444b8c")
"""Colours of learned clusters, distinct for colour-blind readers. Source: Okabe and Ito."""


def routes(frame: pl.DataFrame, styles: Sequence[Style], clients: int, clusters: int) -> Drawing:
    """Draw one heat map per method with the clients' routes: the weights that a client gives to the learned clusters.

    There is one column per client, sorted by true cluster, and one row per learned cluster. A cell with a larger weight
    is darker. Columns of frame: method_id, position (of the client), cluster (learned), weight (0 to 1), true_cluster.
    Positions and clusters are counted from 0.
    """
    width, height = PANEL_PX + 90, 13 * clusters
    edges = frame.group_by("true_cluster").agg(start=pl.col("position").min(), end=pl.col("position").max() + 1)
    edges = edges.sort("start").with_columns(
        middle=(pl.col("start") + pl.col("end")) / 2, name="true " + (pl.col("true_cluster") + 1).cast(pl.String)
    )
    across = alt.Scale(domain=[0, clients], nice=False)
    down = alt.Scale(domain=[clusters, 0], nice=False)
    depth = alt.FillOpacity("weight:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None)
    heat = alt.Chart(alt.NamedData("cells")).encode(
        alt.X("position:Q", scale=across, axis=None), alt.X2("end:Q"),
        alt.Y("cluster:Q", scale=down, axis=None), alt.Y2("bottom:Q"), depth,
    )  # fmt: skip
    borders = alt.Chart(alt.NamedData("borders")).mark_rule(color=MUTED, strokeWidth=0.8).encode(alt.X("start:Q"))
    outline = alt.Chart(alt.NamedData("outline")).mark_rect(filled=False, stroke=BAND, strokeWidth=0.8)
    outline = outline.encode(x=alt.value(0), x2=alt.value(width), y=alt.value(0), y2=alt.value(height))
    panels: list[Any] = []
    for style in styles:
        if style.id in set(frame["method_id"]):
            cells_of_method = heat.transform_filter(alt.datum.method_id == style.id).mark_rect(color=style.colour)
            title = alt.TitleParams(
                style.short, anchor="start", fontSize=10.5, fontWeight="normal", color=INK, offset=3
            )
            panels.append(
                alt.layer(cells_of_method, borders, outline).properties(width=width, height=height, title=title)
            )
    names = alt.Chart(alt.NamedData("edges")).mark_text(color=MUTED, fontSize=10)
    names = names.encode(alt.X("middle:Q", scale=across, axis=None), alt.Text("name:N"))
    cells = frame.filter(pl.col("weight") >= MIN_DRAWN_WEIGHT).select(
        "method_id", "position", "cluster", pl.col("weight").round(3),
        end=pl.col("position") + 1, bottom=pl.col("cluster") + 1,
    )  # fmt: skip
    chart = alt.vconcat(*panels, names.properties(width=width, height=10), spacing=8)
    data = {"cells": cells, "borders": edges.slice(1), "edges": edges, "outline": pl.DataFrame({"one": [1]})}
    plane: Plane = {
        "x": Scale(title="client", domain=(1, clients + 1), length=width),
        "y": Scale(title="learned cluster", domain=(1, clusters + 1), length=height),
    }
    return Drawing(chart=chart, data=data, table=frame, plane=plane)


def routes_over_rounds(frame: pl.DataFrame, clusters: int) -> Drawing:
    """Draw a heat map of one run's routes: one row per client, sorted by true cluster, and one column per round.

    The colour shows the learned cluster with the client's largest weight, and the opacity shows this weight. Columns of
    frame: round, until (the next round in the frame), position (of the client), client, true_cluster, cluster (0 to
    C-1), weight (1/C to 1). C is the number of learned clusters.
    """
    clients = int(frame["position"].max()) + 1  # type: ignore[arg-type]
    start, stop = int(frame["round"].min()), int(frame["until"].max())  # type: ignore[arg-type]
    height = max(120, 5 * clients)
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
    names = alt.Chart(alt.NamedData("edges")).mark_text(color=MUTED, fontSize=10, align="left")
    names = names.encode(alt.X(value=PANEL_PX + 6), alt.Y("middle:Q", scale=down, axis=None), alt.Text("name:N"))
    chart = alt.layer(heat, borders, names).properties(width=PANEL_PX, height=height)
    cells = frame.select(
        "round", "until", "position", "weight", below=pl.col("position") + 1,
        name="cluster " + (pl.col("cluster") + 1).cast(pl.String),
    )  # fmt: skip
    return Drawing(chart=chart, data={"cells": cells, "borders": edges.slice(1), "edges": edges}, table=frame)

"""The two figures of the benchmark: ratios with their limits, and the cost of a round against the number of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from floral.bench.cases import holds
from floral.report.charts.render import INK, MUTED, PRESETS, Drawing, Figure, render

HOLDS, MISSED = "#12886b", "#d9531e"
COLOURS = {"fedavg": "#3f83c9", "floral_1": "#d9531e", "local_adaptor": "#5fbf9b"}
"""The same colours as in the report."""
WIDTH, HEIGHT, ROW = 300, 190, 22
GRID_LINES = [factor * 10.0**power for power in range(-4, 8) for factor in (1, 2, 5)]
"""Positions of the grid lines of logarithmic axes."""


def ratios(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the measured value of each case, divided by its limit, on a logarithmic axis.

    A dot left of 1 is within its limit. If the limit is a lower bound, the limit divided by the value is plotted. Cases
    that were not measured are left out.
    """
    rows = [row for row in rows if row["ratio"] is not None]
    points = []
    for row in rows:
        share, spread = row["ratio"] / row["limit"], row["spread"] / 2 / row["limit"]
        ends = (share - spread, share + spread)
        if row["direction"] == "min":
            share, ends = 1 / share, tuple(1 / end for end in reversed(ends))
        label = f"{row['ratio']:.3g} ({'≤' if row['direction'] == 'max' else '≥'} {row['limit']:g})"
        points.append((row["case"], share, *ends, label, HOLDS if holds(row) else MISSED))
    columns = ["case", "share", "low", "high", "label", "colour"]
    frame = pl.DataFrame(points, schema=columns, orient="row")
    low, high = float(min(0.5, *frame["low"])) / 1.1, float(max(1.3, *frame["high"])) * 1.6
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(title="measured cost / limit", values=grid_lines(low, high), domain=False, ticks=False, format="~g")
    x = alt.X("share:Q", scale=scale, axis=axis)
    names = alt.Axis(title=None, domain=False, ticks=False, labelLimit=420, labelColor=INK, labelPadding=8)
    y = alt.Y("case:N", sort=None, axis=names)
    colour = alt.Color("colour:N", scale=None)
    base = alt.Chart(alt.NamedData("rows"))
    layers = [
        alt.Chart(alt.NamedData("limit"))
        .mark_rule(color=MUTED, strokeDash=[3, 3])
        .encode(x=alt.X("at:Q", scale=scale)),
        base.mark_rule(strokeWidth=2.2, opacity=0.8).encode(
            alt.X("low:Q", scale=scale, axis=axis), y, alt.X2("high:Q"), colour
        ),
        base.mark_circle(size=56, opacity=1).encode(x, y, colour),
        base.mark_text(align="left", dx=9, fontSize=10, color=INK).encode(
            alt.X("high:Q", scale=scale, axis=axis), y, text="label:N"
        ),
    ]
    chart = alt.layer(*layers).properties(width=WIDTH, height=alt.Step(ROW))
    alt_text = "; ".join(f"{row['case']}: {row['ratio']:.3g}, limit {row['limit']:g}" for row in rows)
    return render(
        Drawing(chart=chart, data={"rows": frame, "limit": pl.DataFrame({"at": [1.0]})}),
        PRESETS["text"],
        "bench",
        "Cost of a round",
        "measured value (limit); left of the dashed line the limit holds; bars: interquartile range",
        alt_text,
    )


def scale(result: Mapping[str, Any]) -> Figure:
    """Plot seconds per round and resident memory against the number of clients K, with one line per method.

    All axes are logarithmic.
    """
    points = pl.DataFrame(
        [
            {
                "clients": point["clients"],
                "variant": point["variant"],
                "milliseconds": 1e3 * point["seconds_per_round"],
                "megabytes": point["resident_bytes"] / 1e6,
                "mapped": point["mapped_bytes"] / 1e6,
            }
            for point in result["points"]
        ]
    )
    variants = [variant for variant in COLOURS if variant in set(points["variant"])]
    colour = alt.Color(
        "variant:N",
        scale=alt.Scale(domain=variants, range=[COLOURS[variant] for variant in variants]),
        legend=alt.Legend(title=None, orient="bottom", labelColor=INK, symbolType="circle"),
    )
    counts = sorted(set(points["clients"]))
    x = alt.X(
        "clients:Q",
        scale=alt.Scale(type="log", domain=[counts[0] / 1.3, counts[-1] * 1.3], nice=False),
        axis=alt.Axis(title="clients K", values=counts, format="~s", grid=False),
    )
    panels = [
        panel(x, colour, "milliseconds", points["milliseconds"], "ms per round", []),
        panel(
            x,
            colour,
            "megabytes",
            points["megabytes"],
            "resident memory in MB; dashed: mapped files",
            ["mapped"],
        ),
    ]
    alt_text = f"cost of a round at {', '.join(map(str, counts))} clients: " + "; ".join(
        f"{variant}: {', '.join(f'{value:.3g} ms' for value in points.filter(variant=variant)['milliseconds'])}"
        for variant in variants
    )
    return render(
        Drawing(chart=alt.hconcat(*panels, spacing=36), data={"points": points}),
        PRESETS["text"],
        "scale",
        "Cost of a round by number of clients",
        f"MLP 784→200→10, cohort {result['cohort']} (10 if K = 10), ten samples per client; one process per point",
        alt_text,
    )


def panel(x: alt.X, colour: alt.Color, column: str, values: pl.Series, title: str, dashed: list[str]) -> Any:
    """Plot `column` against the number of clients K as lines with dots, and the columns `dashed` as dashed lines."""
    low, high = float(values.min()) / 3, float(values.max()) * 2  # type: ignore[arg-type,operator]
    vertical = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(title=None, format="~g", domain=False, ticks=False, gridOpacity=0.6, values=grid_lines(low, high))
    base = alt.Chart(alt.NamedData("points"))
    y = alt.Y(f"{column}:Q", scale=vertical, axis=axis)
    layers = [base.mark_line(strokeWidth=1.6).encode(x, y, colour), base.mark_circle(size=34).encode(x, y, colour)]
    for dashed_column in dashed:
        dashed_y = alt.Y(f"{dashed_column}:Q", scale=vertical, axis=axis)
        layers.append(base.mark_line(strokeWidth=1.2, strokeDash=[3, 3], clip=True).encode(x, dashed_y, colour))
    above = alt.TitleParams(title, anchor="start", fontSize=11, fontWeight="normal", color=INK, offset=6)
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=above)


def grid_lines(low: float, high: float) -> list[float]:
    """Return the positions of the grid lines between two values of a logarithmic axis."""
    return [value for value in GRID_LINES if low <= value <= high]

"""Scatter plot with one labelled symbol per method."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import altair as alt
import polars as pl

from floral.report.charts.axes import Axis, round_numbers, tick_options, vega_axis
from floral.report.charts.render import (
    INK,
    LETTER_POINTS,
    MUTED,
    NAME_POINTS,
    Drawing,
    Plane,
    Preset,
    Scale,
    method_colour,
    style_frame,
)
from floral.report.style import Style

SHAPES = (
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left",
    "M-1,-1L1,-1L-1,1L1,1Z", "M0,-1.2L.3,-.4L1.1,-.4L.5,.15L.7,1L0,.5L-.7,1L-.5,.15L-1.1,-.4L-.3,-.4Z",
)  # fmt: skip
"""Shapes of the groups in their order. All groups beyond the last shape share it."""
LABEL_HEIGHT = 8.5
MAX_LABELS = 16
"""With more methods, only some have a label."""


def scatter(
    frame: pl.DataFrame, styles: Sequence[Style], x: Axis, y: Axis, domain: tuple[float, float], preset: Preset,
    named: Collection[str],
) -> Drawing:  # fmt: skip
    """Draw one symbol per method, with the interval of its mean. The symbol's shape shows the method's group.

    `named` are the ids of the methods with a label. With at most MAX_LABELS methods, all have one.

    Columns of frame: method_id, x, mean, low and high (ends of the interval, or the mean if there is none). `domain`
    has the two ends of the y axis.

    The x axis is logarithmic and cannot show 0. A method with x = 0 is drawn at the left edge, after a gap.
    """
    positive = frame.filter(pl.col("x") > 0)["x"]
    start, stop = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 10.0)  # type: ignore[arg-type]
    wide = max(math.log10(stop / start), 0.3)
    x_min, x_max = start / 10 ** (0.06 * wide), stop * 10 ** (0.35 * wide)
    zero = x_min / 10 ** (0.16 * wide) if len(positive) < frame.height else x_min
    low, high = domain
    width, height = preset.width - 40, 170.0
    rows = frame.with_columns(x=pl.when(pl.col("x") > 0).then("x").otherwise(zero))
    rows = rows.join(style_frame(styles), on="method_id", how="inner", maintain_order="left")

    def place(row: dict[str, Any]) -> tuple[float, float]:
        along = math.log(row["x"] / zero) / math.log(x_max / zero) if x_max > zero else 0.5
        scale = math.log if y.log else float
        return along * width, height * (scale(high) - scale(row["mean"])) / (scale(high) - scale(low))

    labels = _place_labels(
        rows, named if rows.height > MAX_LABELS else rows["method_id"].to_list(), place, width, height
    )
    groups = list(dict.fromkeys(style.group_title for style in styles if style.id in set(frame["method_id"])))
    shapes = [SHAPES[min(position, len(SHAPES) - 1)] for position in range(len(groups))]
    ticks = [*([zero] if zero < x_min else []), *round_numbers(x_min, x_max, 5)]
    scale = alt.Scale(domain=[zero, x_max], type="log", nice=False)
    y_scale = alt.Scale(domain=[low, high], type="log" if y.log else "linear", nice=False)
    number = tick_options(x, x_min, x_max)["labelExpr"]
    label = {"labelExpr": f"datum.value < {x_min} ? '0' : {number}"}
    across = alt.X(
        "x:Q", scale=scale, axis=vega_axis(title=x.title, grid=False, values=ticks, labelOverlap=False, **label)
    )
    up = alt.Y(
        "mean:Q",
        scale=y_scale,
        axis=vega_axis(
            title=y.title, tickCount=5, domain=False, ticks=False, **(tick_options(y, low, high) if y.log else {})
        ),
    )
    colour = method_colour(styles)
    shape = alt.Shape(
        "group:N",
        scale=alt.Scale(domain=groups, range=shapes),
        legend=alt.Legend(
            orient="top", title=None, symbolStrokeColor=MUTED, symbolFillColor=MUTED, labelColor=INK, columns=3
        ),
    )
    marks, names = alt.Chart(alt.NamedData("marks")), alt.Chart(alt.NamedData("labels"))
    layers = [
        marks.mark_rule(strokeWidth=0.9, opacity=0.45, clip=True).encode(
            across, alt.Y("low:Q", scale=y_scale), alt.Y2("high:Q"), colour
        ),
        names.mark_rule(strokeWidth=0.5, opacity=0.55).encode(
            alt.X("from_x:Q", scale=None), alt.Y("from_y:Q", scale=None), alt.X2("to_x:Q"), alt.Y2("to_y:Q"), colour
        ).properties(name="leader"),
        marks.mark_point(filled=True, size=24, opacity=1).encode(across, up, colour, shape),
        names.mark_text(align="left", baseline="middle", fontSize=NAME_POINTS, color=INK).encode(
            alt.X("text_x:Q", scale=None), alt.Y("to_y:Q", scale=None), text="short:N"
        ),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=width, height=height)
    kind: Literal["linear", "log"] = "log" if y.log else "linear"
    plane: Plane = {
        "x": Scale(title=x.title, domain=(zero, x_max), length=width, type="log"),
        "y": Scale(title=y.title, domain=(low, high), length=height, type=kind, upward=True),
    }
    return Drawing(chart=chart, data={"marks": rows, "labels": labels}, table=frame, plane=plane)


def _place_labels(
    rows: pl.DataFrame,
    labelled: Collection[str],
    place: Callable[[dict[str, Any]], tuple[float, float]],
    width: float,
    height: float,
) -> pl.DataFrame:
    """Return a place for the label of each labelled method, right of its symbol, if it fits.

    Labels do not overlap symbols or other labels.

    `place` converts a row of the frame to the position of its symbol in pixels.
    """
    marks = [(row, *place(row)) for row in sorted(rows.iter_rows(named=True), key=lambda row: -row["mean"])]
    occupied = [(x - 3.5, y - 3.5, x + 3.5, y + 3.5) for _, x, y in marks]
    moves = sorted(
        (
            (down * LABEL_HEIGHT / 2, right)
            for down in range(-40, 41)
            for right in (6.0, 20.0, 45.0, -45.0, -70.0, -100.0)
        ),
        key=lambda move: math.hypot(move[0], 0.6 * move[1]),
    )
    labels = []
    for row, x, y in marks:
        if row["method_id"] not in labelled:
            continue
        text_width = LETTER_POINTS * len(row["short"])

        def box(move: tuple[float, float], x: float = x, y: float = y, width: float = text_width) -> tuple[float, ...]:
            return (
                x + move[1],
                y + move[0] - LABEL_HEIGHT / 2,
                x + move[1] + width,
                y + move[0] + LABEL_HEIGHT / 2,
            )

        def free(move: tuple[float, float], box: Callable[..., tuple[float, ...]] = box) -> bool:
            x_min, top, x_max, bottom = box(move)
            inside = x_min >= 0 and x_max <= width and top >= -LABEL_HEIGHT / 2 and bottom <= height + LABEL_HEIGHT / 2
            return inside and not any(
                x_min < b[2] and b[0] < x_max and top < b[3] - 1 and b[1] + 1 < bottom for b in occupied
            )

        move = next(filter(free, moves), (0.0, 6.0))
        occupied.append(box(move))  # type: ignore[arg-type]
        labels.append({
            "method_id": row["method_id"], "short": row["short"], "from_x": x, "from_y": y,
            "to_x": x + move[1] - 2, "to_y": y + move[0], "text_x": x + move[1],
        })  # fmt: skip
    types = {"method_id": pl.String, "short": pl.String} | dict.fromkeys(
        ("from_x", "from_y", "to_x", "to_y", "text_x"), pl.Float64
    )
    return pl.DataFrame(labels, schema=types, orient="row").with_columns(pl.col(pl.Float64).round(2))

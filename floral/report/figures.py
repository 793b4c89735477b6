"""Frames → vector figures (Altair, rendered by vl-convert without a browser). Knows no files, no runs, no torch."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt
import polars as pl
import vl_convert

from floral.report.style import Style

INK, MUTED, RULE, BAND = "#1c2127", "#656d76", "#dfe2e6", "#c9ced4"
"""The page's style sheet recolours exactly these four for a dark screen."""

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
STYLE = {
    "font": FONT,
    "aria": False,
    "view": {"stroke": None},
    "title": {"fontSize": 12.5, "fontWeight": 600, "color": INK, "subtitleColor": MUTED, "subtitleFontSize": 11},
    "axis": {
        "labelColor": MUTED, "titleColor": MUTED, "titleFontWeight": "normal", "titleFontSize": 11,
        "labelFontSize": 10, "gridColor": RULE, "domainColor": BAND, "tickColor": BAND, "tickSize": 4,
        "labelPadding": 4, "labelFlush": False,
    },
    "header": {"labelColor": MUTED, "labelFontSize": 10.5, "labelFontStyle": "italic", "labelPadding": 3},
}  # fmt: skip

PANEL, ROW, LETTERS, TEXT = 222, 15, 56, 430
"""Width of a panel and height of a row, letters in a line of a title, and width of what takes both columns of a paper
(487 pixels with its axis). In pixels, which are points in a PDF file."""

LARGEST = 1.35
"""A figure grows on a page to so many times its size: letters of 10 pixels to 13.5."""

FAINT = 0.01
"""Routes below it are not drawn: on screen they are the paper's colour."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A rendered figure: its file name, its SVG, what it says to those who cannot see it, one sentence of what to see
    in it, the data behind it, and how a page reads values off it."""

    name: str
    svg: str
    alt: str
    see: str = ""
    table: pl.DataFrame
    plane: Plane

    @property
    def pdf(self) -> bytes:
        return bytes(vl_convert.svg_to_pdf(self.svg))

    @property
    def csv(self) -> str:
        return self.table.write_csv()

    @property
    def inline(self) -> str:
        """The SVG for a page that holds many: an accessible name, ids of its own, and one scale for all."""
        svg = re.sub(r'(id="|url\(#)clip', rf"\g<1>{self.name}-clip", self.svg)
        svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)  # Vega's roles of marks have no names
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        width = float(re.search(r'width="([\d.]+)"', svg)[1])  # type: ignore[index]
        plane = html.escape(json.dumps(self.plane, default=dataclasses.asdict))
        style = f"max-width:{LARGEST * width:.0f}px"
        return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" data-plane="{plane}" style="{style}" ', 1)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels within a panel: the ends of `domain` lie at 0 and `length`, or the other way round if it is
    `upward`."""

    title: str
    domain: tuple[float, float]
    length: float
    type: Literal["linear", "log", "sqrt"] = "linear"
    upward: bool = False


Plane = Mapping[Literal["x", "y"], Scale]
"""The axes on which a figure's marks have values. Their pixels are exact, so that a page needs no copy of values."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart and the frames it names (Altair copies data within a chart many times over, names it does not), the table
    of what it shows, which is the first of them unless said otherwise, and its axes."""

    chart: Any
    data: dict[str, pl.DataFrame]
    table: pl.DataFrame | None = None
    plane: Plane = field(default_factory=dict)


def render(drawing: Drawing, name: str, title: str, subtitle: str | list[str], alt_text: str, see: str = "") -> Figure:
    """Draw in the report's style. Equal drawings give equal bytes: clip ids count from 0 in every figure."""
    spec = drawing.chart.to_dict(validate=False)
    spec |= {
        "title": {"text": textwrap.wrap(title, LETTERS), "subtitle": subtitle, "anchor": "start", "offset": 10},
        "datasets": {key: frame.to_dicts() for key, frame in drawing.data.items()},
        "background": "transparent",
        "padding": 4,
        "config": STYLE,
    }
    svg = vl_convert.vegalite_to_svg(spec)
    numbers = {found: str(at) for at, found in enumerate(dict.fromkeys(re.findall(r'id="clip(\d+)"', svg)))}
    svg = re.sub(r"((?:id=\"|url\(#)clip)(\d+)", lambda m: m[1] + numbers[m[2]], svg)
    table = next(iter(drawing.data.values())) if drawing.table is None else drawing.table
    return Figure(name=name, svg=svg, alt=alt_text, see=see, table=table, plane=drawing.plane)


def _colour(styles: Sequence[Style]) -> alt.Color:
    scale = alt.Scale(domain=[style.id for style in styles], range=[style.colour for style in styles])
    return alt.Color("contender:N", scale=scale, legend=None)


# ------------------------------------------------------------------------------------- curves over time


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows: its title, a d3 number format, whether it is logarithmic, and where values can be at all."""

    title: str
    format: str | None = None
    log: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)
    places: tuple[float, ...] = ()
    """Ticks of an axis by the square root, which has room for 0 and for what is near it."""


def curves(frame: pl.DataFrame, styles: Sequence[Style], x: Axis, y: Axis) -> Drawing:
    """Mean lines with their range as bands, labelled at the right end instead of by a legend.

    `frame`: contender, x, mean, low, high, n. One that has a single x is drawn as a level over the whole width (it
    spends nothing of x). On a logarithmic axis, values <= 0 are left out.
    """
    shown = [style for style in styles if style.id in set(frame["contender"])]
    spends = pl.col("x").n_unique().over("contender") > 1
    moving = frame.filter(spends & (pl.col("x") > 0) if x.log else spends)
    level = frame.filter(~spends).group_by("contender", maintain_order=True).last()
    start, stop = (float(moving["x"].min()), float(moving["x"].max())) if moving.height else (1.0, 10.0)  # type: ignore[arg-type]
    ends = pl.concat([moving.group_by("contender", maintain_order=True).last(), level.with_columns(x=pl.lit(stop))])
    low, high = _domain(frame, y)
    height = max(200, 12 * len(shown) + 12)
    names = _labels(ends, shown, low, high, height, y.log)

    dash = alt.StrokeDash(
        "contender:N",
        scale=alt.Scale(
            domain=[style.id for style in shown], range=[[4, 2] if style.dashed else [1, 0] for style in shown]
        ),
        legend=None,
    )
    y_scale = alt.Scale(domain=[low, high], type="log" if y.log else "linear", nice=False)
    kind: Literal["linear", "log", "sqrt"] = "sqrt" if x.places else "log" if x.log else "linear"
    horizontal = alt.X(
        "x:Q",
        scale=alt.Scale(domain=[start, stop], type=kind, nice=False),
        axis=_axis(
            title=x.title,
            format=x.format,
            grid=False,
            **({"values": list(x.places)} if x.places else _ticks(start, stop, x.log)),
        ),
    )
    vertical = alt.Y(
        "mean:Q", scale=y_scale, axis=_axis(title=None, format=y.format, tickCount=5, domain=False, ticks=False)
    )
    colour = _colour(shown)
    lower, upper = alt.Y("low:Q", scale=y_scale), alt.Y2("high:Q")
    base = alt.Chart(alt.NamedData("lines"))
    labels, beside = alt.Chart(alt.NamedData("labels")), alt.Y("label_y:Q", scale=y_scale)
    layers = [
        base.mark_area(opacity=0.13, clip=True).encode(horizontal, lower, upper, colour),
        base.mark_line(strokeWidth=1.6, clip=True, strokeJoin="round").encode(horizontal, vertical, colour, dash),
        alt.Chart(alt.NamedData("levels")).mark_rule(strokeWidth=1.2, opacity=0.8).encode(vertical, colour, dash),
        labels.mark_rule(strokeWidth=0.6, opacity=0.6).encode(
            alt.X("x:Q"), alt.Y("mean:Q", scale=y_scale), alt.X2(value=PANEL + 5), alt.Y2("label_y:Q"), colour
        ).properties(name="leader"),
        labels.mark_circle(size=26, opacity=1).encode(alt.X(value=PANEL + 8), beside, colour).properties(name="key"),
        labels.mark_text(align="left", fontSize=10, color=INK).encode(alt.X(value=PANEL + 14), beside, text="short:N"),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=PANEL, height=height)
    across = Scale(title=x.title, domain=(start, stop), length=PANEL, type=kind)
    up = Scale(title=y.title, domain=(low, high), length=height, type="log" if y.log else "linear", upward=True)
    data = {"lines": moving, "levels": level, "labels": names}
    return Drawing(chart=chart, data=data, table=frame, plane={"x": across, "y": up})


def _axis(**options: Any) -> alt.Axis:
    return alt.Axis(**{key: value for key, value in options.items() if key != "format" or value is not None})


def _ticks(start: float, stop: float, log: bool) -> dict[str, Any]:
    """At most five places: powers of ten on a logarithmic axis, with 2 and 5 between them while there is room."""
    if not log:
        return {"tickCount": 4}
    return {"values": _places(start, stop, 5)}


def _places(start: float, stop: float, most: int = 8) -> list[float]:
    """Round numbers on a logarithmic axis, as many as there is room for."""
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(stop)) + 1)
    places: list[float] = []
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))[most <= 5 :]:
        places = [value for power in powers for factor in factors if start <= (value := factor * 10.0**power) <= stop]
        if len(places) <= most:
            return places
    return places[:: math.ceil(len(places) / most)]


def _domain(frame: pl.DataFrame, axis: Axis) -> tuple[float, float]:
    low, high = float(frame["low"].min()), float(frame["high"].max())  # type: ignore[arg-type]
    if axis.log:
        return low / 1.1, high * 1.1
    margin = 0.03 * (high - low) or 0.5
    return max(low - margin, axis.limits[0]), min(high + margin, axis.limits[1])


def _labels(
    ends: pl.DataFrame, styles: Sequence[Style], low: float, high: float, height: int, log: bool
) -> pl.DataFrame:
    """Where the names of lines stand so that none overlaps: pushed apart from the top, then back from the bottom."""
    short = {style.id: style.short for style in styles}
    scale = math.log if log else float
    bottom, span = scale(low), scale(high) - scale(low)
    rows = sorted(ends.iter_rows(named=True), key=lambda row: -row["mean"])
    places, gap = [], 11.5
    for row in rows:
        wished = height * (1 - (scale(row["mean"]) - bottom) / span)
        places.append(max(wished, places[-1] + gap if places else 0))
    limit = float(height)
    for at in range(len(places) - 1, -1, -1):
        places[at] = min(places[at], limit)
        limit = places[at] - gap
    back = [bottom + span * (1 - place / height) for place in places]
    values = [math.exp(value) if log else value for value in back]
    return pl.DataFrame(rows, schema=ends.schema).with_columns(
        label_y=pl.Series(values, dtype=pl.Float64), short=pl.col("contender").replace_strict(short)
    )


# ------------------------------------------------------------------------------ one mark for each contender

SHAPES = (
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left",
    "M-1,-1L1,-1L-1,1L1,1Z", "M0,-1.2L.3,-.4L1.1,-.4L.5,.15L.7,1L0,.5L-.7,1L-.5,.15L-1.1,-.4L-.3,-.4Z",
)  # fmt: skip
"""One for each heading, in their order; the last stands for all further ones."""
LINE, LETTER = 11.0, 5.7
"""Height of a label and width of a letter of it, in pixels, as large as they get."""


def scatter(frame: pl.DataFrame, styles: Sequence[Style], x: Axis, y: Axis, domain: tuple[float, float]) -> Drawing:
    """A mark for each contender with its interval, named beside it; its shape is that of its heading. Intervals are cut
    where they leave the `domain` of y.

    `frame`: contender, x, mean, low, high (the mean where there is no interval). x is logarithmic; what is at 0 stands
    at the left edge, behind a gap.
    """
    positive = frame.filter(pl.col("x") > 0)["x"]
    start, stop = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 10.0)  # type: ignore[arg-type]
    wide = max(math.log10(stop / start), 0.3)
    left, right = start / 10 ** (0.06 * wide), stop * 10 ** (0.2 * wide)
    zero = left / 10 ** (0.16 * wide) if len(positive) < frame.height else left
    low, high = domain
    width, height = TEXT, max(240, min(620, 13 * frame.height))
    rows = frame.with_columns(x=pl.when(pl.col("x") > 0).then("x").otherwise(zero))
    rows = rows.join(_about(styles), on="contender", how="inner", maintain_order="left")

    def place(row: dict[str, Any]) -> tuple[float, float]:
        along = math.log(row["x"] / zero) / math.log(right / zero) if right > zero else 0.5
        scale = math.log if y.log else float
        return along * width, height * (scale(high) - scale(row["mean"])) / (scale(high) - scale(low))

    labels = _beside(rows, place, width, height)
    groups = list(dict.fromkeys(style.group_title for style in styles if style.id in set(frame["contender"])))
    shapes = [SHAPES[min(at, len(SHAPES) - 1)] for at in range(len(groups))]
    ticks = [*([zero] if zero < left else []), *_places(left, right)]
    scale = alt.Scale(domain=[zero, right], type="log", nice=False)
    y_scale = alt.Scale(domain=[low, high], type="log" if y.log else "linear", nice=False)
    label = {"labelExpr": f"datum.value < {left} ? '0' : format(datum.value, '~s')"}
    across = alt.X("x:Q", scale=scale, axis=_axis(title=x.title, grid=False, values=ticks, labelOverlap=False, **label))
    up = alt.Y("mean:Q", scale=y_scale, axis=_axis(title=y.title, tickCount=6, domain=False, ticks=False))
    colour = _colour(styles)
    shape = alt.Shape(
        "group:N",
        scale=alt.Scale(domain=groups, range=shapes),
        legend=alt.Legend(orient="top", title=None, symbolStrokeColor=MUTED, symbolFillColor=MUTED, labelColor=INK),
    )
    marks, names = alt.Chart(alt.NamedData("marks")), alt.Chart(alt.NamedData("labels"))
    layers = [
        marks.mark_rule(strokeWidth=1.4, opacity=0.45, clip=True).encode(
            across, alt.Y("low:Q", scale=y_scale), alt.Y2("high:Q"), colour
        ),
        names.mark_rule(strokeWidth=0.6, opacity=0.55).encode(
            alt.X("from_x:Q", scale=None), alt.Y("from_y:Q", scale=None), alt.X2("to_x:Q"), alt.Y2("to_y:Q"), colour
        ).properties(name="leader"),
        marks.mark_point(filled=True, size=58, opacity=1).encode(across, up, colour, shape),
        names.mark_text(align="left", baseline="middle", fontSize=10, color=INK).encode(
            alt.X("text_x:Q", scale=None), alt.Y("to_y:Q", scale=None), text="short:N"
        ),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=width, height=height)
    kind: Literal["linear", "log"] = "log" if y.log else "linear"
    plane: Plane = {
        "x": Scale(title=x.title, domain=(zero, right), length=width, type="log"),
        "y": Scale(title=y.title, domain=(low, high), length=height, type=kind, upward=True),
    }
    return Drawing(chart=chart, data={"marks": rows, "labels": labels}, table=frame, plane=plane)


def _beside(
    rows: pl.DataFrame, place: Callable[[dict[str, Any]], tuple[float, float]], width: float, height: float
) -> pl.DataFrame:
    """A label to the right of each mark, moved up or down, then further right, to the nearest place that is free."""
    at = [(row, *place(row)) for row in sorted(rows.iter_rows(named=True), key=lambda row: -row["mean"])]
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in at]
    moves = sorted(
        ((down * LINE / 2, 9.0 + right) for down in range(-40, 41) for right in (0.0, 22.0, 70.0, 118.0)),
        key=lambda move: math.hypot(move[0], 0.6 * move[1]),
    )
    found = []
    for row, x, y in at:
        wide = LETTER * len(row["short"])

        def box(move: tuple[float, float], x: float = x, y: float = y, wide: float = wide) -> tuple[float, ...]:
            return x + move[1], y + move[0] - LINE / 2, x + move[1] + wide, y + move[0] + LINE / 2

        def free(move: tuple[float, float], box: Callable[..., tuple[float, ...]] = box) -> bool:
            left, top, right, bottom = box(move)
            inside = right <= width + 40 and top >= -LINE / 2 and bottom <= height + LINE / 2
            return inside and not any(
                left < b[2] and b[0] < right and top < b[3] - 1 and b[1] + 1 < bottom for b in taken
            )

        move = next(filter(free, moves), (0.0, 9.0))
        taken.append(box(move))  # type: ignore[arg-type]
        found.append({
            "contender": row["contender"], "short": row["short"], "from_x": x, "from_y": y,
            "to_x": x + move[1] - 2, "to_y": y + move[0], "text_x": x + move[1],
        })  # fmt: skip
    types = {"contender": pl.String, "short": pl.String} | dict.fromkeys(
        ("from_x", "from_y", "to_x", "to_y", "text_x"), pl.Float64
    )
    return pl.DataFrame(found, schema=types, orient="row").with_columns(pl.col(pl.Float64).round(2))


def _about(styles: Sequence[Style]) -> pl.DataFrame:
    return pl.DataFrame([{"contender": k.id, "short": k.short, "group": k.group_title} for k in styles])


# -------------------------------------------------------------------------- one row for each contender


def rows(frame: pl.DataFrame, styles: Sequence[Style], x: Axis, domain: tuple[float, float]) -> Drawing:
    """Contenders under one another, by group; every mark that a row of `frame` asks for by its `kind`.

    `frame`: contender, kind, value, value2, label. Kinds: `band` and `middle` (grey: chance alone), `whisker`, `box`
    and `interval` (value to value2), `point`, `tick`, `median`, `dot` and `hollow`; `below` and `above` are the label
    of what lies outside the domain.
    """
    frame = frame.join(_about(styles), on="contender", how="inner", maintain_order="left")
    shown = [style for style in styles if style.id in set(frame["contender"])]
    groups = list(dict.fromkeys(style.group_title for style in shown))
    kind_of: Literal["linear", "log"] = "log" if x.log else "linear"
    scale, places = alt.Scale(domain=list(domain), nice=False, type=kind_of), _ticks(*domain, x.log)
    value = alt.X(
        "value:Q", scale=scale, axis=_axis(title=x.title, format=x.format, domain=False, ticks=False, **places)
    )
    name = alt.Y(
        "short:N",
        sort=[style.short for style in shown],
        axis=alt.Axis(title=None, domain=False, ticks=False, labelLimit=150, labelColor=INK, labelPadding=8),
    )
    colour, end = _colour(shown), alt.X2("value2:Q")

    def of(kind: str) -> alt.Chart:
        return alt.Chart().transform_filter(alt.datum.kind == kind)

    layers = {
        "band": of("band").mark_bar(height=11, color=BAND, opacity=0.65).encode(value, name, end),
        "middle": of("middle").mark_tick(height=11, thickness=1, color=MUTED).encode(value, name),
        "whisker": of("whisker").mark_rule(strokeWidth=1).encode(value, name, end, colour),
        "box": of("box").mark_bar(height=6, opacity=0.75).encode(value, name, end, colour),
        "point": of("point").mark_circle(size=9, opacity=0.45).encode(value, name, colour),
        "interval": of("interval").mark_rule(strokeWidth=2.2, opacity=0.8).encode(value, name, end, colour),
        "tick": of("tick").mark_tick(height=9, thickness=1, opacity=0.9).encode(value, name, colour),
        "median": of("median").mark_tick(height=9, thickness=2, color=INK).encode(value, name),
        "dot": of("dot").mark_circle(size=46, opacity=1).encode(value, name, colour),
        "hollow": of("hollow").mark_point(size=34, opacity=1, strokeWidth=1.6).encode(value, name, colour),
        "below": of("below").mark_text(align="left", fontSize=10).encode(value, name, colour, text="label:N"),
        "above": of("above").mark_text(align="right", fontSize=10).encode(value, name, colour, text="label:N"),
    }
    kinds = set(frame["kind"])
    chart = alt.layer(*(layer for kind, layer in layers.items() if kind in kinds), data=alt.NamedData("marks"))
    header = alt.Header(labelOrient="top", labelAnchor="start", title=None)
    chart = chart.properties(width=PANEL, height=alt.Step(ROW))
    chart = chart.facet(row=alt.Row("group:N", sort=groups, header=header), spacing=4).resolve_scale(y="independent")
    along = Scale(title=x.title, domain=domain, length=PANEL, type=kind_of)
    return Drawing(chart=chart, data={"marks": frame}, table=frame.drop("short", "group"), plane={"x": along})


# ------------------------------------------------------------------------------------------ ranks over tasks


def ranks(frame: pl.DataFrame, styles: Sequence[Style], bars: Sequence[tuple[str, str]]) -> Drawing:
    """A critical-difference diagram lying on its side: mean ranks from the best down, and a bar along each run of rows
    that are not told apart.

    `frame`: contender, rank; `styles` in the order of the rows; `bars`: first and last contender of a run.
    """
    short = {style.id: style.short for style in styles}
    down = alt.Scale(domain=list(short.values()))
    name = alt.Y(
        "short:N",
        scale=down,
        axis=alt.Axis(title=None, domain=False, ticks=False, labelLimit=150, labelColor=INK, labelPadding=8, grid=True),
    )
    scale = alt.Scale(domain=[1, len(styles)], nice=False)
    across = alt.X("rank:Q", scale=scale, axis=_axis(title="Mean rank", grid=False, tickCount=5))
    marks, joined = alt.Chart(alt.NamedData("marks")), alt.Chart(alt.NamedData("bars"))
    layers = [
        marks.mark_circle(size=46, opacity=1).encode(across, name, _colour(styles)),
        joined.mark_rule(strokeWidth=3, color=MUTED, strokeCap="round").encode(
            alt.X("place:Q", scale=None), alt.Y("first:N", scale=down), alt.Y2("last:N")
        ),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=PANEL, height=alt.Step(ROW))
    rows = frame.with_columns(short=pl.col("contender").replace_strict(short), rank=pl.col("rank").round(6))
    ends = [
        {"first": short[first], "last": short[last], "place": PANEL + 10 + 8 * at}
        for at, (first, last) in enumerate(bars)
    ]
    types = {"first": pl.String, "last": pl.String, "place": pl.Int64}
    return Drawing(chart=chart, data={"marks": rows, "bars": pl.DataFrame(ends, schema=types)})


# ------------------------------------------------------------------------------------- routes of clients


def routes(frame: pl.DataFrame, styles: Sequence[Style], clients: int, clusters: int) -> Drawing:
    """Heat maps π_kc: clients from left to right by true cluster, learned clusters from top to bottom.

    `frame`: contender, position (0..K-1), cluster (0..C-1), weight (0..1), true_cluster. Opacity is the weight.
    """
    width, height = PANEL + 90, 13 * clusters
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
        if style.id in set(frame["contender"]):
            own = heat.transform_filter(alt.datum.contender == style.id).mark_rect(color=style.colour)
            title = alt.TitleParams(
                style.short, anchor="start", fontSize=10.5, fontWeight="normal", color=INK, offset=3
            )
            panels.append(alt.layer(own, borders, outline).properties(width=width, height=height, title=title))
    names = alt.Chart(alt.NamedData("edges")).mark_text(color=MUTED, fontSize=10)
    names = names.encode(alt.X("middle:Q", scale=across, axis=None), alt.Text("name:N"))
    cells = frame.filter(pl.col("weight") >= FAINT).select(
        "contender", "position", "cluster", pl.col("weight").round(3),
        end=pl.col("position") + 1, bottom=pl.col("cluster") + 1,
    )  # fmt: skip
    chart = alt.vconcat(*panels, names.properties(width=width, height=10), spacing=8)
    data = {"cells": cells, "borders": edges.slice(1), "edges": edges, "outline": pl.DataFrame({"one": [1]})}
    plane: Plane = {
        "x": Scale(title="client", domain=(1, clients + 1), length=width),
        "y": Scale(title="learned cluster", domain=(1, clusters + 1), length=height),
    }
    return Drawing(chart=chart, data=data, table=frame, plane=plane)


# ------------------------------------------------------------------------------------ two sizes together

LIGHTEST, DARKEST = "#e8f0f8", "#0b3d78"
"""One hue from light to dark, which every eye and a grey print can order."""


def heat(frame: pl.DataFrame, across: Sequence[str], down: Sequence[str], higher: bool) -> Drawing:
    """A square for each pair of `rank` (down) and `adaptors` (across) with its `text`, darker where `mean` is better.

    `frame`: rank, adaptors, mean, low, high, text.
    """
    least, most = float(frame["mean"].min()), float(frame["mean"].max())  # type: ignore[arg-type]
    share = (pl.col("mean") - least) / ((most - least) or 1.0)
    cells = frame.with_columns(
        ink=pl.when(share > 0.5 if higher else share < 0.5).then(pl.lit("#ffffff")).otherwise(pl.lit("#000000"))
    )
    ramp = [LIGHTEST, DARKEST] if higher else [DARKEST, LIGHTEST]
    base = alt.Chart(alt.NamedData("cells")).encode(
        alt.X("adaptors:N", sort=list(across), axis=_axis(title="Adaptors", labelAngle=0, domain=False, ticks=False)),
        alt.Y("rank:N", sort=list(down), axis=_axis(title=None, domain=False, ticks=False, labelColor=INK)),
    )
    colour = alt.Color("mean:Q", scale=alt.Scale(domain=[least, most], range=ramp), legend=None)
    squares = base.mark_rect().encode(colour)
    names = base.mark_text(fontSize=11).encode(text="text:N", color=alt.Color("ink:N", scale=None))
    chart = alt.layer(squares, names).resolve_scale(color="independent")
    chart = chart.properties(width=PANEL, height=alt.Step(2 * ROW))
    return Drawing(chart=chart, data={"cells": cells}, table=frame.drop("text"))


# --------------------------------------------------------------------------------------- routes over rounds

HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7a00", "#444b8c")
"""Learned clusters, in hues that colour-blind readers tell apart (after Okabe and Ito)."""


def followed(frame: pl.DataFrame, clusters: int) -> Drawing:
    """Clients down, by true cluster, rounds across: the hue is the heaviest learned cluster, the opacity its weight.

    `frame`: round, until, position, client, true_cluster, cluster (0..C-1), weight (1/C..1).
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
        alt.X("round:Q", scale=along, axis=_axis(title="Round", grid=False, tickCount=4)),
        alt.X2("until:Q"), alt.Y("position:Q", scale=down, axis=None), alt.Y2("below:Q"), colour,
        alt.FillOpacity("weight:Q", scale=alt.Scale(domain=[1 / clusters, 1], range=[0.2, 1]), legend=None),
    )  # fmt: skip
    borders = alt.Chart(alt.NamedData("borders")).mark_rule(color=INK, strokeWidth=0.8)
    borders = borders.encode(alt.Y("top:Q", scale=down, axis=None))
    names = alt.Chart(alt.NamedData("edges")).mark_text(color=MUTED, fontSize=10, align="left")
    names = names.encode(alt.X(value=PANEL + 6), alt.Y("middle:Q", scale=down, axis=None), alt.Text("name:N"))
    chart = alt.layer(heat, borders, names).properties(width=PANEL, height=height)
    cells = frame.select(
        "round", "until", "position", "weight", below=pl.col("position") + 1,
        name="cluster " + (pl.col("cluster") + 1).cast(pl.String),
    )  # fmt: skip
    return Drawing(chart=chart, data={"cells": cells, "borders": edges.slice(1), "edges": edges}, table=frame)

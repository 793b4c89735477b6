"""Charts with one line per method, over rounds, bytes, forward-backward passes or labelled samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import polars as pl

from floral.report.charts.axes import Axis, tick_options, value_domain
from floral.report.charts.render import (
    DASHES,
    INK,
    MARKERS,
    Drawing,
    Preset,
    Scale,
    name_width,
)
from floral.report.style import MAX_LINES, REFERENCE, Style

LABEL_GAP = 8.6
"""Smallest distance of two labels in points."""
MAX_PANEL_LINES = 10
"""Largest number of lines in one of several panels. A larger family has several panels."""
MAX_NAME_WIDTH = 72.0
"""Longer names are cut where there are several panels."""
AXIS_WIDTH, KEY_WIDTH, SPACING = 40.0, 14.0, 5.0
"""Room in points for the y axis, for the keys of the names, and between panels."""
MAX_MARKERS = 5
"""Number of markers on a line."""
PANEL_HEIGHT, SMALL_PANEL_HEIGHT = 130, 96


def curves(frame: pl.DataFrame, styles: Sequence[Style], x: Axis, y: Axis, preset: Preset) -> Drawing:
    """Draw one line per method (its mean over seeds), with a band (range over seeds) and its name at the right end.

    Columns of frame: method_id, x, mean, and the ends low and high of the band. x is a number of rounds, bytes, passes
    or labelled samples. With more than MAX_LINES methods, each family has a panel, with the reference in each. All
    panels have the same axes.

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

    panels = _panels(drawn)
    several = len(panels) > 1
    total = preset.several if several else preset.width
    columns = round(total / 162) if several else 1
    names_width = min(name_width(drawn), MAX_NAME_WIDTH if several else total / 2)
    width = (total - AXIS_WIDTH - SPACING * columns) / columns - KEY_WIDTH - names_width
    height = max(SMALL_PANEL_HEIGHT if several else PANEL_HEIGHT, LABEL_GAP * max(map(len, panels.values())) + 10)
    kinds: tuple[Literal["linear", "log", "sqrt"], ...] = ("sqrt" if x.ticks else "log" if x.log else "linear",)
    kinds += ("log" if y.log else "linear",)
    scales = [
        {"domain": domain, "type": kind, "nice": False}
        for domain, kind in zip(([start, stop], [low, high]), kinds, strict=True)
    ]
    names = pl.concat(
        _labels(ends, members, low, high, height, y.log).with_columns(panel=pl.lit(title))
        for title, members in panels.items()
    )
    data = {
        "lines": moving, "levels": level, "labels": names,
        "markers": moving.filter(
            pl.int_range(pl.len()).over("method_id") % (pl.len().over("method_id") / MAX_MARKERS).ceil() == 0
        ),
    }  # fmt: skip
    anchor = {"titleAnchor": "start"} if several else {}  # the title may be longer than the panel
    horizontal = {"title": x.title, "grid": False, **anchor, **tick_options(x, start, stop, 3 if several else 5)}
    vertical = {"title": y.title, "domain": False, "ticks": False, **tick_options(y, low, high)}
    views = [
        _panel(
            title, members, drawn, scales,
            (
                horizontal | ({"title": None} if place < len(panels) - columns else {}),
                vertical | ({"title": None, "labels": False} if place % columns else {}),
            ),
            (width, height, names_width),
        )
        for place, (title, members) in enumerate(panels.items())
    ]  # fmt: skip
    chart = {"concat": views, "columns": columns, "spacing": SPACING, "align": "each"} if several else views[0]
    across = Scale(title=x.title, domain=(start, stop), length=width, type=kinds[0])
    up = Scale(title=y.title, domain=(low, high), length=height, type=kinds[1], upward=True)
    return Drawing(chart=chart, data=data, table=frame, plane={"x": across, "y": up}, several=several)


def _panels(styles: Sequence[Style]) -> dict[str, list[Style]]:
    """Return title → methods of each panel: one panel for few methods, else one per family with the reference."""
    if len(styles) <= MAX_LINES:
        return {"": list(styles)}
    reference = [style for style in styles if style.id == REFERENCE]
    panels = {}
    for title, group in groupby((style for style in styles if style.id != REFERENCE), key=lambda s: s.group_title):
        members = list(group)
        parts = math.ceil((len(members) + len(reference)) / MAX_PANEL_LINES)
        size = math.ceil(len(members) / parts)
        for part in range(parts):
            name = f"{title}, {part + 1} of {parts}" if parts > 1 else title
            panels[name] = [*members[part * size : (part + 1) * size], *reference]
    return panels


def _panel(
    title: str, styles: Sequence[Style], all_styles: Sequence[Style], scales: Sequence[Mapping[str, Any]],
    axes: Sequence[Mapping[str, Any]], size: tuple[float, float, float],
) -> dict[str, Any]:  # fmt: skip
    """Return the Vega-Lite specification of the panel of these methods.

    all_styles: the methods of all panels, which share the scale of colours. size: width and height of the panel, and
    width of the names beside it.
    """
    width, height, names_width = size
    ids = [style.id for style in styles]
    ranges = {
        "color": [style.colour for style in all_styles],
        "strokeDash": [list(DASHES[style.line[0]]) for style in all_styles],
        "shape": [MARKERS[style.line[1]] for style in all_styles],
    }
    domain = [style.id for style in all_styles]
    by_method = {
        channel: {"field": "method_id", "type": "nominal", "legend": None, "scale": {"domain": domain, "range": values}}
        for channel, values in ranges.items()
    }
    colour, dash, shape = ({channel: by_method[channel]} for channel in ranges)
    horizontal = {"x": {"field": "x", "type": "quantitative", "scale": scales[0], "axis": axes[0]}}
    vertical = {"field": "mean", "type": "quantitative", "scale": scales[1], "axis": axes[1]}
    beside = {"y": {"field": "label_y", "type": "quantitative", "scale": scales[1]}}
    band = {"y": {**vertical, "field": "low"}, "y2": {"field": "high"}}

    def layer(data: str, mark: Mapping[str, Any], encoding: Mapping[str, Any], name: str = "") -> dict[str, Any]:
        panel_rows = {"field": "panel", "equal": title} if data == "labels" else {"field": "method_id", "oneOf": ids}
        return {
            "data": {"name": data}, "transform": [{"filter": panel_rows}], "mark": mark, "encoding": encoding,
            **({"name": name} if name else {}),
        }  # fmt: skip

    line = {"type": "line", "strokeWidth": 1.1, "clip": True, "strokeJoin": "round"}
    marker = {"type": "point", "filled": True, "size": 11, "opacity": 1}
    key = {"type": "point", "filled": True, "size": 14, "opacity": 1}
    name = {"type": "text", "align": "left", "fontSize": 7, "color": INK, "limit": names_width}
    leader = {"x": {"field": "x", "type": "quantitative", "scale": scales[0]}, "x2": {"value": width + 4}}
    layers = [
        layer("lines", {"type": "area", "opacity": 0.12, "clip": True}, {**horizontal, **band, **colour}),
        layer("lines", line, {**horizontal, "y": vertical, **colour, **dash}),
        layer("markers", marker, {**horizontal, "y": vertical, **colour, **shape}),
        layer("levels", {"type": "rule", "strokeWidth": 0.9, "opacity": 0.8}, {"y": vertical, **colour, **dash}),
        layer(
            "labels", {"type": "rule", "strokeWidth": 0.5, "opacity": 0.6},
            {**leader, "y": {**vertical, "axis": axes[1]}, "y2": {"field": "label_y"}, **colour}, f"leader {title}",
        ),
        layer("labels", key, {"x": {"value": width + 7}, **beside, **colour, **shape}, f"key {title}"),
        layer("labels", name, {"x": {"value": width + 12}, **beside, "text": {"field": "short"}}),
    ]  # fmt: skip
    return {"title": title, "width": width, "height": height, "layer": layers}


def _labels(
    ends: pl.DataFrame, styles: Sequence[Style], low: float, high: float, height: float, log: bool
) -> pl.DataFrame:
    """Return the right ends of the lines, each with a height `label_y` for its label, so that labels do not overlap."""
    short = {style.id: style.short for style in styles}
    scale = math.log if log else float
    bottom, span = scale(low), scale(high) - scale(low)
    rows = sorted(
        (row for row in ends.iter_rows(named=True) if row["method_id"] in short), key=lambda row: -row["mean"]
    )
    places: list[float] = []
    for row in rows:
        preferred = height * (1 - (scale(row["mean"]) - bottom) / span)
        places.append(max(preferred, places[-1] + LABEL_GAP if places else 0))
    limit = float(height)
    for position in range(len(places) - 1, -1, -1):
        places[position] = min(places[position], limit)
        limit = places[position] - LABEL_GAP
    moved = [bottom + span * (1 - place / height) for place in places]
    values = [math.exp(value) if log else value for value in moved]
    return pl.DataFrame(rows, schema=ends.schema).with_columns(
        label_y=pl.Series(values, dtype=pl.Float64), short=pl.col("method_id").replace_strict(short)
    )

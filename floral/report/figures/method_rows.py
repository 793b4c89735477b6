"""Figure with one row per method, which shows its values as dots, intervals, boxes and ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from floral.report.charts.axes import Axis
from floral.report.charts.render import Figure, Preset, render
from floral.report.charts.rows import rows
from floral.report.compared import Configuration
from floral.report.figures.axis_range import (
    LIMITS,
    Range,
    clip,
    enclosing,
    far_methods,
    is_logarithmic,
    round_outwards,
)
from floral.report.figures.wording import name_few
from floral.report.style import Style
from floral.report.tables import number

CENTRES = ("dot", "hollow", "median")
"""The kinds of mark whose value labels a method outside the axis."""

Mark = tuple[str, str, float, float | None]
"""method, kind, value, value2, as in charts.rows."""


def method_rows(
    marks: list[Mark], styles: Sequence[Style], configuration: Configuration, preset: Preset, kind: str, title: str,
    digits: int | None, subtitle: str, alt_text: str, see: str = "",
) -> Figure:  # fmt: skip
    """Plot the values of each method in one row, as dots, intervals, boxes and ticks.

    The subtitle names the methods whose values are beyond the range of the axis, and the methods whose interval is cut
    off at the end of the axis.
    """
    low, high = LIMITS[configuration.metric]
    measured = [end for _, mark_kind, *ends in marks if mark_kind != "interval" for end in ends if end is not None]
    log = is_logarithmic(configuration, measured)
    low = min(measured) / 1.5 if log else low
    clipped: list[Mark] = [
        (n, k, clip(v, low, high), None if w is None else clip(w, low, high)) for n, k, v, w in marks
    ]
    cut = {before[0] for before, after in zip(marks, clipped, strict=True) if before != after}
    controls = {style.id for style in styles if style.group == "control"}
    far = set() if log else far_methods(_ranges(clipped), controls)
    ends = enclosing(ends for method, ends in _ranges(clipped).items() if method not in far)
    start, stop = (low, 1.5 * ends[1]) if log else round_outwards(ends, low, high)
    labels = [
        (n, "below", start, None, f"← {number(v, digits)}")
        if v < start
        else (n, "above", stop, None, f"{number(v, digits)} →")
        for n, k, v, _ in clipped
        if n in far and k in CENTRES
    ]
    edge = "the end of the axis" if log else "0" if high == math.inf else "0 or 100 %"
    notes = {"outside the axis": far, f"interval cut at {edge}": cut}
    lines = [
        f"{note}: {name_few(style.short for style in styles if style.id in methods)}"
        for note, methods in notes.items()
        if methods
    ]
    types = {"method_id": pl.String, "kind": pl.String, "value": pl.Float64, "value2": pl.Float64, "label": pl.String}
    inside = [(*mark, None) for mark in clipped if mark[0] not in far]
    frame = pl.DataFrame([*inside, *labels], schema=types, orient="row").with_columns(
        pl.col("value", "value2").round_sig_figs(6)
    )
    chart = rows(frame, styles, Axis(title=title, log=log), (start, stop), preset)
    return render(chart, preset, f"{kind}_{configuration.id}", configuration.title, [subtitle, *lines], alt_text, see)


def _ranges(marks: list[Mark]) -> dict[str, Range]:
    """Return the lowest and the highest plotted value of each method."""
    values: dict[str, list[float]] = {}
    for method, _, *ends in marks:
        values.setdefault(method, []).extend(end for end in ends if end is not None)
    return {method: (min(ends), max(ends)) for method, ends in values.items()}

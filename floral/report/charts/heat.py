"""Heat map of one method's results: the rank of its adaptors on one axis, and their number on the other."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import polars as pl

from floral.report.charts.axes import vega_axis
from floral.report.charts.render import INK, NAME_POINTS, ROW_POINTS, Drawing, Preset

LIGHTEST, DARKEST = "#e8f0f8", "#0b3d78"
"""One hue from light to dark, readable for colour-blind readers and in grey print."""


def heat(frame: pl.DataFrame, across: Sequence[str], down: Sequence[str], higher: bool, preset: Preset) -> Drawing:
    """Draw one square for each combination of a rank and a number of adaptors. A better mean result is darker.

    down: the ranks from top to bottom. across: the numbers of adaptors from left to right. higher: whether a higher
    mean is better. Columns of frame: rank, adaptors (how many), mean (over seeds), low and high (ends of the mean's
    interval), and text (written into the square).
    """
    lowest, highest = float(frame["mean"].min()), float(frame["mean"].max())  # type: ignore[arg-type]
    share = (pl.col("mean") - lowest) / ((highest - lowest) or 1.0)
    cells = frame.with_columns(
        ink=pl.when(share > 0.5 if higher else share < 0.5).then(pl.lit("#ffffff")).otherwise(pl.lit("#000000"))
    )
    ramp = [LIGHTEST, DARKEST] if higher else [DARKEST, LIGHTEST]
    base = alt.Chart(alt.NamedData("cells")).encode(
        alt.X(
            "adaptors:N", sort=list(across), axis=vega_axis(title="Adaptors", labelAngle=0, domain=False, ticks=False)
        ),
        alt.Y("rank:N", sort=list(down), axis=vega_axis(title=None, domain=False, ticks=False, labelColor=INK)),
    )
    colour = alt.Color("mean:Q", scale=alt.Scale(domain=[lowest, highest], range=ramp), legend=None)
    squares = base.mark_rect().encode(colour)
    names = base.mark_text(fontSize=NAME_POINTS).encode(text="text:N", color=alt.Color("ink:N", scale=None))
    chart = alt.layer(squares, names).resolve_scale(color="independent")
    chart = chart.properties(width=preset.width - 56, height=alt.Step(2 * ROW_POINTS))
    return Drawing(chart=chart, data={"cells": cells}, table=frame.drop("text"))

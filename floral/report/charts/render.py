"""Render Altair charts as vector figures in the report's style, with vl-convert and without a browser."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt
import polars as pl
import vl_convert

from floral.report.style import Style

INK, MUTED, RULE, BAND = "#1c2127", "#656d76", "#dfe2e6", "#c9ced4"
"""The page's style sheet changes exactly these four colours in its dark theme."""

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
VEGA_CONFIG = {
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

PANEL_PX = 222
ROW_HEIGHT_PX = 15
"""A pixel is a point in a PDF file."""
WIDE_PANEL_PX = 430
"""Width of a panel that spans both columns of a paper (487 pixels with its axis)."""
TITLE_LETTERS = 56
"""Letters in one line of a figure's title."""
MAX_ZOOM = 1.35
"""Largest magnification of a figure on the page: letters of 10 pixels become 13.5."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A rendered figure (SVG) with its file name, its texts, the plotted data and its axes."""

    name: str
    """The name of its files, without suffix."""
    svg: str
    alt: str
    """The alternative text, for readers who cannot see the figure."""
    see: str = ""
    """One sentence on what the figure shows, for its caption."""
    table: pl.DataFrame
    """The plotted data."""
    plane: Plane
    """The axes, from which the page reads values."""

    @property
    def pdf(self) -> bytes:
        return bytes(vl_convert.svg_to_pdf(self.svg))

    @property
    def csv(self) -> str:
        # files of earlier reports have this column name
        return self.table.rename({"method_id": "contender"}, strict=False).write_csv()

    @property
    def inline(self) -> str:
        """Return the SVG code for the page.

        It has an accessible name, ids that are unique on the page, the figure's axes, and the largest width at which it
        may be shown.
        """
        svg = re.sub(r'(id="|url\(#)clip', rf"\g<1>{self.name}-clip", self.svg)
        svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)  # Vega sets roles on marks without names
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        width = float(re.search(r'width="([\d.]+)"', svg)[1])  # type: ignore[index]
        plane = html.escape(json.dumps(self.plane, default=dataclasses.asdict))
        style = f"max-width:{MAX_ZOOM * width:.0f}px"
        return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" data-plane="{plane}" style="{style}" ', 1)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The scale of one axis: it converts values to positions in pixels.

    `domain[0]` lies at pixel 0, and `domain[1]` at pixel `length`. With `upward`, it is the other way round, because
    pixels are counted from the top of the figure.
    """

    title: str
    domain: tuple[float, float]
    length: float
    type: Literal["linear", "log", "sqrt"] = "linear"
    upward: bool = False


Plane = Mapping[Literal["x", "y"], Scale]
"""The axes that give a figure's marks their values. The page computes values from pixels and stores no copy of them."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """An Altair chart that is not rendered yet, with its data and axes."""

    chart: Any
    data: dict[str, pl.DataFrame]
    """The frames that the chart refers to by name. Altair would copy embedded frames into every layer."""
    table: pl.DataFrame | None = None
    """The data for the figure's CSV file. None: the first frame of `data`."""
    plane: Plane = field(default_factory=dict)


def render(drawing: Drawing, name: str, title: str, subtitle: str | list[str], alt_text: str, see: str = "") -> Figure:
    """Render a drawing as a figure in the report's style. Equal drawings give equal bytes."""
    spec = drawing.chart.to_dict(validate=False)
    spec |= {
        "title": {"text": textwrap.wrap(title, TITLE_LETTERS), "subtitle": subtitle, "anchor": "start", "offset": 10},
        "datasets": {key: frame.to_dicts() for key, frame in drawing.data.items()},
        "background": "transparent",
        "padding": 4,
        "config": VEGA_CONFIG,
    }
    svg = vl_convert.vegalite_to_svg(spec)
    numbers = {clip: str(number) for number, clip in enumerate(dict.fromkeys(re.findall(r'id="clip(\d+)"', svg)))}
    svg = re.sub(r"((?:id=\"|url\(#)clip)(\d+)", lambda m: m[1] + numbers[m[2]], svg)
    table = next(iter(drawing.data.values())) if drawing.table is None else drawing.table
    return Figure(name=name, svg=svg, alt=alt_text, see=see, table=table, plane=drawing.plane)


def method_colour(styles: Sequence[Style]) -> alt.Color:
    scale = alt.Scale(domain=[style.id for style in styles], range=[style.colour for style in styles])
    return alt.Color("method_id:N", scale=scale, legend=None)


def style_frame(styles: Sequence[Style]) -> pl.DataFrame:
    """Return one row per method with its id, short name and group. It is joined to the data of a chart."""
    return pl.DataFrame([{"method_id": style.id, "short": style.short, "group": style.group_title} for style in styles])

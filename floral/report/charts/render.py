"""Render Altair charts as vector figures in the report's style, with vl-convert and without a browser."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt
import polars as pl
import vl_convert
from altair.utils import schemapi

from floral.report.style import Style

schemapi.DEBUG_MODE = False
"""Altair would check each part of a chart against its schema, which takes a third of the time of a figure."""
INK, MUTED, RULE, BAND = "#1c2127", "#656d76", "#dfe2e6", "#c9ced4"
"""The page's style sheet changes exactly these four colours in its dark theme."""

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
VEGA_CONFIG = {
    "font": FONT,
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED, "titleColor": MUTED, "titleFontWeight": "normal", "titleFontSize": 7.5,
        "labelFontSize": 7, "gridColor": RULE, "domainColor": BAND, "tickColor": BAND, "tickSize": 3,
        "labelPadding": 3, "titlePadding": 4, "labelFlush": False, "gridWidth": 0.6, "domainWidth": 0.6,
        "tickWidth": 0.6,
    },
    "header": {"labelColor": MUTED, "labelFontSize": 7.5, "labelFontStyle": "italic", "labelPadding": 2},
    "title": {"fontSize": 7.5, "fontWeight": "normal", "color": INK, "anchor": "start", "offset": 3},
    "legend": {"labelFontSize": 7, "symbolSize": 30, "rowPadding": 1, "columnPadding": 6, "padding": 0},
}  # fmt: skip

NAME_POINTS, LETTER_POINTS = 7.5, 4.1
"""Size of names in figures, and an upper bound on the mean width of their letters. A pixel is a point in a PDF file."""
ROW_POINTS = 10.5
"""Height of the row of one method."""
DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (4, 1.5), (1.2, 1.5), (6, 1.5, 1.2, 1.5))
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross")
"""Dash patterns and markers of lines. A style has the number of each (see report.style)."""
MAX_ZOOM = 1.75
"""Largest magnification of a figure on the page: letters of 7.5 pixels become 13."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The size of figures: their width in points (1/72 inch) for one panel and for several, and a magnification.

    Letters have 7 to 8 points times the magnification.
    """

    width: float
    several: float
    zoom: float = 1.0


PRESETS = {
    "column": Preset(width=234, several=486),
    "text": Preset(width=486, several=486),
    "slide": Preset(width=360, several=360, zoom=2),
}
"""For a column of 3.25 inches, for the text of 6.75 inches, and for a slide of 10 inches."""


def name_width(styles: Iterable[Style]) -> float:
    """Return the width in points that the longest short name needs."""
    return LETTER_POINTS * max((len(style.short) for style in styles), default=0)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A rendered figure (SVG) with its file name, its texts, the plotted data and its axes."""

    name: str
    """The name of its files, without suffix."""
    svg: str
    title: str
    subtitle: str
    """What the marks mean. Title and subtitle stand beside the figure and not in it."""
    alt: str
    """The alternative text, for readers who cannot see the figure."""
    see: str = ""
    """One sentence on what the figure shows, for its caption."""
    table: pl.DataFrame
    """The plotted data."""
    plane: Plane
    """The axes, from which the page reads values."""

    zoom: float = 1.0

    @property
    def width(self) -> float:
        """Width in points (1/72 inch)."""
        return float(re.search(r'width="([\d.]+)"', self.svg)[1])  # type: ignore[index]

    @property
    def is_wide(self) -> bool:
        """Whether it spans both columns of a paper, and the whole width of the page."""
        return self.width / self.zoom > 300

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
        plane = html.escape(json.dumps(self.plane, default=dataclasses.asdict))
        style = f"max-width:{MAX_ZOOM * self.width / self.zoom:.0f}px"
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
    several: bool = False
    """Whether it has several panels, which may span both columns of a paper."""


def render(
    drawing: Drawing, preset: Preset, name: str, title: str, subtitle: str | list[str], alt_text: str, see: str = ""
) -> Figure:
    """Render a drawing as a figure in the report's style. Equal drawings give equal bytes.

    The figure has the width of the preset. A wider drawing is made smaller, and room is left beside a narrower one.
    """
    spec = drawing.chart if isinstance(drawing.chart, dict) else drawing.chart.to_dict(validate=False)
    spec |= {
        "datasets": {key: frame.to_dicts() for key, frame in drawing.data.items()},
        "background": "transparent",
        "padding": 2,
        "config": VEGA_CONFIG,
    }
    svg = vl_convert.vegalite_to_svg(spec)
    numbers = {clip: str(number) for number, clip in enumerate(dict.fromkeys(re.findall(r'id="clip(\d+)"', svg)))}
    svg = re.sub(r"((?:id=\"|url\(#)clip)(\d+)", lambda m: m[1] + numbers[m[2]], svg)
    table = next(iter(drawing.data.values())) if drawing.table is None else drawing.table
    subtitle = subtitle if isinstance(subtitle, str) else "; ".join(line.rstrip(",;") for line in subtitle)
    return Figure(
        name=name, svg=_sized(svg, preset.several if drawing.several else preset.width, preset.zoom), title=title,
        subtitle=subtitle, alt=alt_text, see=see, table=table, plane=drawing.plane, zoom=preset.zoom,
    )  # fmt: skip


def _sized(svg: str, width: float, zoom: float) -> str:
    """Return the SVG code with this width in points, times the magnification."""
    size = re.compile(r'width="([\d.]+)" height="([\d.]+)" viewBox="0 0 [\d.]+ [\d.]+"')
    natural, height = map(float, size.search(svg).groups())  # type: ignore[union-attr]
    room = max(natural, width)
    factor = zoom * width / room
    head = f'width="{width * zoom:g}" height="{height * factor:.6g}" viewBox="0 0 {room:g} {height:g}"'
    return size.sub(head, svg, count=1)


def method_colour(styles: Sequence[Style]) -> alt.Color:
    scale = alt.Scale(domain=[style.id for style in styles], range=[style.colour for style in styles])
    return alt.Color("method_id:N", scale=scale, legend=None)


def style_frame(styles: Sequence[Style]) -> pl.DataFrame:
    """Return one row per method with its id, short name and group. It is joined to the data of a chart."""
    return pl.DataFrame([{"method_id": style.id, "short": style.short, "group": style.group_title} for style in styles])

"""Colour, short name and group of each method, for all tables and figures."""

from __future__ import annotations

import colorsys
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from floral.report.charts.colour_difference import MIN_DIFFERENCE, difference
from floral.report.compared import MethodRow

Group = Literal["method", "oracle", "control"]
UNRANKED_GROUPS: dict[Group, str] = {"oracle": "Told the true clusters", "control": "Controls"}
"""Groups below the methods, in this order, and their headings. They are never among the best methods."""

REFERENCE = "floral_1"
"""The variant that all others are compared with."""
MAX_LINES = 16
"""Largest number of lines in one panel. With more methods, each family has a panel of its own, with the reference."""
DASHES, MARKERS = 4, 5
"""Numbers of dash patterns and of markers."""

LIGHTNESS = (0.45, 0.62, 0.36, 0.70, 0.53)
HUE_STEP_DEGREES = 9
MAX_HUE_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Style:
    id: str
    title: str
    short: str
    family: str
    group: Group
    colour: str
    dashed: bool
    """Whether its swatch in tables is hatched: it is told the true clusters."""
    line: tuple[int, int] = (0, 0)
    """Numbers of the dash pattern and of the marker of its line in figures (see charts.render)."""

    @property
    def group_title(self) -> str:
        """The heading above the method in tables: its family, `Told the true clusters` for oracles, or `Controls`."""
        return UNRANKED_GROUPS.get(self.group, self.family)


def method_styles(methods: Iterable[MethodRow], palette: Mapping[str, Any]) -> dict[str, Style]:
    """Return a style for each method, in the order of the tables: method families, then oracles, then controls.

    Oracles know the true clusters. Controls are run for comparison only, such as a constant prediction.
    """
    return assign_styles(
        [(row.id, row.title, row.variant.name, row.variant.family, row.variant.oracle) for row in methods], palette
    )


def assign_styles(variants: Iterable[tuple[str, str, str, str, bool]], palette: Mapping[str, Any]) -> dict[str, Style]:
    """Return a style (colour, short name and group) for each variant.

    variants: (id, title, variant name, family, whether it is an oracle). palette: the contents of styles.yaml, which
    fixes the style of some variants. A tuned and an untuned variant have the same name but two ids. Only the first id
    gets the fixed colour and short name, so that no two ids share a colour. Other ids get an unused shade of their
    family's hue.
    """
    variants = list(variants)
    used_colours = {entry["colour"] for entry in palette["variants"].values()}
    fixed_names: set[str] = set()
    styles: list[Style] = []
    for id_, title, name, family, oracle in sorted(variants, key=lambda variant: variant[0] != REFERENCE):
        entry = palette["variants"].get(name, {})
        default: Group = "control" if family == "Control" else "oracle" if oracle else "method"
        style = Style(
            id=id_, title=title, short=title, family=family, group=entry.get("group", default), colour="", dashed=oracle
        )
        together = [item for item in styles if len(variants) <= MAX_LINES or item.group_title == style.group_title]
        together += [item for item in styles if item.id == REFERENCE and item not in together]
        if entry and name not in fixed_names:
            fixed_names.add(name)
            style = replace(style, short=entry.get("short", title))
            colours: Iterable[str] = [entry["colour"]]
        else:
            colours = (colour for colour in _shades(family, palette["families"]) if colour not in used_colours)
        colour, line = _distinct(colours, together, style)
        used_colours.add(colour)
        styles.append(replace(style, colour=colour, line=line))
    families = [*palette["families"], *sorted({style.family for style in styles} - palette["families"].keys())]
    order = [*families, *UNRANKED_GROUPS.values()]
    places = {variant[0]: place for place, variant in enumerate(variants)}
    styles.sort(key=lambda style: (order.index(style.group_title), places[style.id]))
    return {style.id: style for style in styles}


def are_distinct(first: Style, second: Style) -> bool:
    """Return whether readers tell two lines apart, also with a colour vision deficiency.

    Their colours differ by MIN_DIFFERENCE at least, or both their dashes and their markers differ.
    """
    if all(a != b for a, b in zip(first.line, second.line, strict=True)):
        return True
    return difference(first.colour, second.colour) >= MIN_DIFFERENCE


def _distinct(colours: Iterable[str], together: Sequence[Style], style: Style) -> tuple[str, tuple[int, int]]:
    """Return the first colour, with a dash pattern and a marker, that differs from all methods drawn together.

    If there is none, return the first colour and line that differ from most of them.
    """
    best: tuple[int, str, tuple[int, int]] | None = None
    for colour in colours:
        for line in itertools.product(range(DASHES), range(MARKERS)):
            tried = replace(style, colour=colour, line=line)
            alike = sum(not are_distinct(tried, item) for item in together)
            if best is None or alike < best[0]:
                best = (alike, colour, line)
            if not alike:
                return colour, line
    if best is None:
        raise ValueError(
            f"no free colour for the method family {style.family!r}: all {MAX_HUE_STEPS * len(LIGHTNESS)} shades are "
            "used; set the `colour` of some variants of this family in reports/template/styles.yaml"
        )
    return best[1:]


def _shades(family: str, hues: Mapping[str, int | str]) -> Iterator[str]:
    """Return the shades of the family's hue, then those of the next hues."""
    hue = hues.get(family, zlib.crc32(family.encode()) % 360)
    saturation = 0.0 if hue == "none" else 0.6
    start = 0.0 if hue == "none" else float(hue)
    for step in range(MAX_HUE_STEPS):
        for lightness in LIGHTNESS:
            turned = (start + HUE_STEP_DEGREES * step) % 360 / 360
            red, green, blue = colorsys.hls_to_rgb(turned, lightness, saturation or 0.05 * step)
            yield "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))

"""Colour, short name and group of each method, for all tables and figures."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from floral.report.compared import MethodRow

Group = Literal["method", "oracle", "control"]
UNRANKED_GROUPS: dict[Group, str] = {"oracle": "Told the true clusters", "control": "Controls"}
"""Groups below the methods, in this order, and their headings. They are never among the best methods."""

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
    styles, used_colours = [], {entry["colour"] for entry in palette["variants"].values()}
    fixed_names: set[str] = set()
    for id_, title, name, family, oracle in variants:
        entry = palette["variants"].get(name, {})
        if entry and name not in fixed_names:
            colour, short = entry["colour"], entry.get("short", title)
            fixed_names.add(name)
        else:
            colour, short = _free_colour(family, palette["families"], used_colours), title
            used_colours.add(colour)
        default: Group = "control" if family == "Control" else "oracle" if oracle else "method"
        group: Group = entry.get("group", default)
        styles.append(Style(id=id_, title=title, short=short, family=family, group=group, colour=colour, dashed=oracle))
    families = [*palette["families"], *sorted({style.family for style in styles} - palette["families"].keys())]
    order = [*families, *UNRANKED_GROUPS.values()]
    return {style.id: style for style in sorted(styles, key=lambda style: order.index(style.group_title))}


def _free_colour(family: str, hues: Mapping[str, int | str], used_colours: set[str]) -> str:
    """Return the first unused shade of the family's hue. If all its shades are used, continue with the next hue."""
    hue = hues.get(family, zlib.crc32(family.encode()) % 360)
    saturation = 0.0 if hue == "none" else 0.6
    start = 0.0 if hue == "none" else float(hue)
    for step in range(MAX_HUE_STEPS):
        for lightness in LIGHTNESS:
            turned = (start + HUE_STEP_DEGREES * step) % 360 / 360
            red, green, blue = colorsys.hls_to_rgb(turned, lightness, saturation or 0.05 * step)
            colour = "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
            if colour not in used_colours:
                return colour
    raise ValueError(
        f"no free colour for the method family {family!r}: all {MAX_HUE_STEPS * len(LIGHTNESS)} shades are used; "
        "set the `colour` of some variants of this family in reports/template/styles.yaml"
    )

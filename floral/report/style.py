"""How a contender looks wherever it appears: one colour, one short name, one group. Tables and figures share it."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Group = Literal["method", "oracle", "control"]
APART: dict[Group, str] = {"oracle": "Told the true clusters", "control": "Controls"}
"""What stands below the methods, in this order: rows that are no rivals and never marked best or second."""

LIGHTNESS = (0.45, 0.62, 0.36, 0.70, 0.53)


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
        """The heading that it stands below: a method's family."""
        return APART.get(self.group, self.family)


def styles(variants: Iterable[tuple[str, str, str, str, bool]], palette: Mapping[str, Any]) -> dict[str, Style]:
    """Looks of (id, title, variant name, family, oracle), by id: methods by family, then oracles, then controls.

    A palette entry pins a variant's colour, short name and group; only the first id of a variant name has the pinned
    colour, so that no two share one. Others take their family's hue and the next free lightness.
    """
    found, taken = [], {entry["colour"] for entry in palette["variants"].values()}
    pinned_used: set[str] = set()
    for id_, title, name, family, oracle in variants:
        pinned = palette["variants"].get(name, {})
        if pinned and name not in pinned_used:
            colour, short = pinned["colour"], pinned.get("short", title)
            pinned_used.add(name)
        else:
            colour, short = _free_colour(family, palette["families"], taken), title
            taken.add(colour)
        default: Group = "control" if family == "Control" else "oracle" if oracle else "method"
        group: Group = pinned.get("group", default)
        found.append(Style(id=id_, title=title, short=short, family=family, group=group, colour=colour, dashed=oracle))
    families = [*palette["families"], *sorted({style.family for style in found} - palette["families"].keys())]
    order = [*families, *APART.values()]
    return {style.id: style for style in sorted(found, key=lambda style: order.index(style.group_title))}


def _free_colour(family: str, hues: Mapping[str, int | str], taken: set[str]) -> str:
    """The first shade of the family's hue that nobody has; the hue moves on by 9° when all its shades are taken."""
    hue = hues.get(family, zlib.crc32(family.encode()) % 360)
    saturation = 0.0 if hue == "none" else 0.6
    start = 0.0 if hue == "none" else float(hue)
    for step in range(40):
        for lightness in LIGHTNESS:
            turned = (start + 9 * step) % 360 / 360
            red, green, blue = colorsys.hls_to_rgb(turned, lightness, saturation or 0.05 * step)
            colour = "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
            if colour not in taken:
                return colour
    raise ValueError(f"no colour is left for family {family!r}: 200 are taken")

"""What a section of the report is made of, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from floral.report.collect import Collected
from floral.report.figures import Figure
from floral.report.style import Style
from floral.report.tables import Cell, Table


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that a section may read: the suite's results, how contenders look, the captions of captions.yaml, and the
    figures by setting and kind: in the order of the settings, without those that are not drawn."""

    collected: Collected
    styles: Mapping[str, Style]
    captions: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, Figure]]

    def rows(self, cells: Mapping[str, Mapping[str, Cell]]) -> list[tuple[Style, Mapping[str, Cell]]]:
        """The rows of a table in the order of the looks: of the contenders that have cells."""
        return [(style, cells[name]) for name, style in self.styles.items() if name in cells]

    def drawn(self, *kinds: str) -> tuple[Figure, ...]:
        """The figures of these kinds, setting by setting."""
        return tuple(figures[kind] for figures in self.figures.values() for kind in kinds if kind in figures)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table below a line that opens it, and what holds for it alone."""

    title: str
    table: Table
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page, below the title that captions.yaml has for its `id`.

    Its figures, in rows, and its tables are shown by reports/template/sections/default.html.j2, or as
    sections/<id>.html.j2 says where that is there; all of them are written to files too.
    """

    id: str
    figures: tuple[tuple[Figure, ...], ...] = ()
    layout: Literal["grid", "grid thirds", "wide"] = "grid"
    parts: tuple[Part, ...] = ()
    note: str = ""
    """A remark on this suite's results, below the words of captions.yaml."""
    opened: bool = True
    """Whether the first table is in view, or below the line that opens it like the others."""


Make = Callable[[Material], Section | None]
"""Makes a section, or None where the suite has nothing for it."""

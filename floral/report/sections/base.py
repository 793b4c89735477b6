"""Building blocks of the report's sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from floral.report.charts.render import PRESETS, Figure, Preset
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.style import Style
from floral.report.tables import Cell, Column, Table, grid

CONFIGURATIONS_PER_TABLE = 4
"""Largest number of configurations side by side in one table; further ones get a second table."""

Cells = Mapping[str, Mapping[str, Cell]]
"""method → column → cell"""


@dataclass(frozen=True, kw_only=True)
class Material:
    """All data from which the sections of the report are built: results, styles of methods, captions and figures."""

    collected: Collected
    styles: Mapping[str, Style]
    captions: Mapping[str, Any]
    """The contents of captions.yaml."""
    figures: Mapping[str, Mapping[str, Figure]]
    """configuration → kind → figure, in the order of the configurations and without those that have no figures."""
    preset: Preset = PRESETS["column"]
    """The size of figures."""

    def rows(self, cells: Cells) -> list[tuple[Style, Mapping[str, Cell]]]:
        """Return the rows of a table, one per method, in the order of `styles`. Methods without cells are left out."""
        return [(style, cells[method]) for method, style in self.styles.items() if method in cells]

    def figures_of(self, *kinds: str) -> tuple[Figure, ...]:
        """Return the figures of these kinds (such as `spread`) for all tasks."""
        return tuple(figures[kind] for figures in self.figures.values() for kind in kinds if kind in figures)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table that readers can open and close, with a title above and a note below."""

    title: str
    table: Table
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report's page: figures, tables and notes. captions.yaml has its texts under the section's `id`.

    Its HTML template is reports/template/sections/<id>.html.j2 if this file exists, otherwise default.html.j2.
    """

    id: str
    answer: str = ""
    """What the section says about this suite, in one line beside its title."""
    figures: tuple[tuple[Figure, ...], ...] = ()
    """Rows of figures."""
    layout: Literal["grid", "grid thirds"] = "grid"
    parts: tuple[Part, ...] = ()
    note: str = ""
    """A remark on this suite's results, below the caption."""
    opened: bool = True
    """Whether the first table is unfolded. All others are folded."""


Make = Callable[[Material], Section | None]
"""Makes a section; returns None if the suite has no data for it."""


def figures_section(material: Material, id_: str, *kinds: str) -> Section | None:
    """Build a section with all figures of these kinds (such as `spread`) and no tables. Return None without figures."""
    figures = material.figures_of(*kinds)
    return Section(id=id_, figures=(figures,)) if figures else None


def side_by_side(
    material: Material, name: str, configurations: tuple[Configuration, ...], cells: Mapping[str, Cells],
    columns: Callable[[Configuration, Cells], dict[str, str]],
    note: Callable[[Sequence[Configuration]], str] = lambda _: "",
) -> tuple[Part, ...]:  # fmt: skip
    """Build tables that show several configurations (tasks with their settings) side by side.

    One table has at most CONFIGURATIONS_PER_TABLE of them. cells: configuration → method → column → cell. columns: a
    function that takes a configuration and its cells, and returns column → title. note: a function that returns the
    note below the table of some configurations.
    """
    parts = []
    for start in range(0, len(configurations), CONFIGURATIONS_PER_TABLE):
        group = configurations[start : start + CONFIGURATIONS_PER_TABLE]
        heads = [
            Column(id=f"{configuration.id}.{key}", title=title, spanner=configuration.title)
            for configuration in group
            for key, title in columns(configuration, cells[configuration.id]).items()
        ]
        rows: list[tuple[Style, dict[str, Cell]]] = []
        for method, style in material.styles.items():
            row = {
                f"{configuration.id}.{key}": cell
                for configuration in group
                for key, cell in cells[configuration.id].get(method, {}).items()
            }
            if row:
                rows.append((style, row))
        if rows:
            several = len(configurations) > CONFIGURATIONS_PER_TABLE
            label = f"{name}_{start // CONFIGURATIONS_PER_TABLE + 1}" if several else name
            title = ", ".join(configuration.title for configuration in group)
            table = grid(label, heads, rows, material.captions[name]["latex"])
            parts.append(Part(title=title, table=table, note=note(group)))
    return tuple(parts)

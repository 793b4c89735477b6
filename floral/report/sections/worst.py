"""Section with the worst cluster and the worst decile of clients beside chance, and the names of the worst clients."""

from __future__ import annotations

from floral.core.intervals import t_interval
from floral.report.compared import Configuration
from floral.report.sections.base import Cells, Material, Part, Section, side_by_side
from floral.report.summarise import usual_seeds
from floral.report.tables import Cell, Column, grid, interval_cell, number
from floral.report.worst_clients import Worst, WorstOf, lowest_named, worst

MAX_NAME_LENGTH = 40
"""Longer names of clients are cut, so that the table stays readable."""
TITLES: dict[WorstOf, str] = {"cluster": "Worst cluster, %", "decile": "Worst decile, %"}


def section(material: Material) -> Section | None:
    collected = material.collected
    usual = usual_seeds(collected)
    cells: dict[str, dict[str, dict[str, Cell]]] = {}
    below, counted = 0, 0
    for configuration in collected.configurations:
        for kind in TITLES:
            for item in worst(collected, configuration, kind):
                row = cells.setdefault(configuration.id, {}).setdefault(item.method, {})
                row[kind] = _cell(item, usual)
                below += item.below_chance
                counted += len(item.observed)
    configurations = tuple(item for item in collected.configurations if item.id in cells)
    titles = {str(kind): title for kind, title in TITLES.items()}

    def columns(_: Configuration, cells: Cells) -> dict[str, str]:
        return {key: title for key, title in titles.items() if any(key in row for row in cells.values())}

    parts = side_by_side(material, "worst", configurations, cells, columns)
    parts += tuple(part for item in collected.configurations if (part := _named(material, item)) is not None)
    if not parts:
        return None
    figures = material.figures_of("worst_cluster", "worst_decile")
    answer = f"{below} of {counted} results of the worst clients lie below what chance explains."
    return Section(id="worst", answer=answer, figures=(figures,), parts=parts, opened=False)


def _cell(item: Worst, usual: int) -> Cell:
    mean = t_interval([100 * value for value in item.observed.values()])
    band = f"chance {number(100 * item.null.low, 0)}\u2013{number(100 * item.null.high, 0)}"
    return interval_cell(mean, 1, note=band, usual=usual)


def _named(material: Material, configuration: Configuration) -> Part | None:
    """Return a table of the clients with the lowest accuracy, by their names in the data. None without names."""
    lowest = lowest_named(material.collected, configuration)
    if not lowest:
        return None
    cells = {
        method: {
            f"n{place}": Cell(text=_short(name), note=f"{number(100 * accuracy, 1)} %", order=100 * accuracy)
            for place, (name, accuracy) in enumerate(clients)
        }
        for method, clients in lowest.items()
    }
    places = range(max(map(len, lowest.values())))
    columns = [
        Column(id=f"n{place}", title=f"{place + 1}", spanner="Clients from the lowest accuracy on") for place in places
    ]
    caption = f"{configuration.title}: clients with the lowest accuracy (mean over seeds), by their names in the data."
    table = grid(f"lowest_{configuration.id}", columns, material.rows(cells), caption)
    return Part(title=f"{configuration.title}: clients with the lowest accuracy", table=table)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}\u2026"

"""Section with the worst cluster and the worst decile of clients, compared with what chance alone would give."""

from __future__ import annotations

from floral.core.intervals import interval
from floral.report.sections.base import Material, Section, side_by_side
from floral.report.summarise import usual_seeds
from floral.report.tables import Cell, interval_cell, number
from floral.report.worst_clients import Worst, WorstOf, worst

TITLES: dict[WorstOf, str] = {"cluster": "Worst cluster, %", "decile": "Worst decile, %"}


def section(material: Material) -> Section | None:
    collected = material.collected
    usual = usual_seeds(collected)
    cells: dict[str, dict[str, dict[str, Cell]]] = {}
    for configuration in collected.configurations:
        for kind in TITLES:
            for item in worst(collected, configuration, kind):
                row = cells.setdefault(configuration.id, {}).setdefault(item.method, {})
                row[kind] = _cell(item, usual)
    configurations = tuple(item for item in collected.configurations if item.id in cells)
    titles = {str(kind): title for kind, title in TITLES.items()}
    parts = side_by_side(material, "worst", configurations, cells, lambda *_: titles)
    if not parts:
        return None
    figures = material.figures_of("worst_cluster", "worst_decile")
    return Section(id="worst", figures=(figures,), parts=parts, opened=False)


def _cell(item: Worst, usual: int) -> Cell:
    mean = interval([100 * value for value in item.observed.values()])
    band = f"chance {number(100 * item.null.low, 0)}\u2013{number(100 * item.null.high, 0)}"
    return interval_cell(mean, 1, note=band, usual=usual)

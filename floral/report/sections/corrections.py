"""The report's section on fidelity: official, with one switch corrected at a time, and corrected, side by side."""

from __future__ import annotations

from collections.abc import Mapping

from floral.report.collect import Collected, Configuration
from floral.report.paired import Paired
from floral.report.sections.base import Material, Part, Section
from floral.report.summarise import results, unit, usual_seeds
from floral.report.tables import Cell, Column, grid, interval_cell

CORRECTED = "corrected"


def section(material: Material) -> Section | None:
    """A table for each task that the suite runs with official fidelity as it is, and with something of it corrected."""
    parts = []
    for official in material.collected.configurations:
        if official.fidelity == "official" and not official.switches:
            others = _others(material.collected, official)
            if cells := correction_cells(material.collected, official, others):
                parts.append(_part(material, official, others, cells))
    return Section(id="corrections", parts=tuple(parts)) if parts else None


def _others(collected: Collected, official: Configuration) -> dict[str, Configuration]:
    """What is corrected → the setting: single switches of official fidelity, then `corrected` for all of them."""
    alike = [one for one in collected.configurations if one.task == official.task]
    single = {
        f"{switch}: {value}": one
        for one in alike
        if one.fidelity == "official" and len(one.switches) == 1
        for switch, value in one.switches.items()
    }
    whole = [one for one in alike if one.fidelity == "corrected" and not one.switches]
    return {**single, **({CORRECTED: whole[0]} if whole else {})}


def correction_cells(
    collected: Collected, official: Configuration, others: Mapping[str, Configuration]
) -> dict[str, dict[str, Cell]]:
    """contender → `official`: its mean; and what is corrected → the difference to that, paired by seed."""
    usual, digits = usual_seeds(collected), unit(collected, official).digits
    before = results(collected, official)
    cells: dict[str, dict[str, Cell]] = {}
    for what, configuration in others.items():
        after = results(collected, configuration)
        for name in (name for name in before.values if name in after.values):
            both = Paired(values={"before": before.values[name], "after": after.values[name]})
            if (difference := both.difference("after", "before")) is not None:
                row = cells.setdefault(name, {"official": interval_cell(before.mean(name), digits, usual=usual)})
                cell = interval_cell(difference, digits, sign=True, usual=usual)
                row[what] = Cell(text=cell.text, note=cell.note, order=cell.order, quiet=not difference.excludes_zero)
    return cells


def _part(
    material: Material,
    official: Configuration,
    others: Mapping[str, Configuration],
    cells: Mapping[str, Mapping[str, Cell]],
) -> Part:
    shown = unit(material.collected, official)
    spanner = f"Corrected \u2212 official, {shown.difference}"
    columns = [Column(id="official", title=f"Official: {shown.title}")]
    columns += [Column(id=what, title="all" if what == CORRECTED else what, spanner=spanner) for what in others]
    rows = material.rows(cells)
    title = official.task.title
    table = grid(f"corrections_{official.id}", columns, rows, f"{title}: {material.captions['corrections']['latex']}")
    return Part(title=title, table=table)

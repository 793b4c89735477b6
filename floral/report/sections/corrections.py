"""Section on deviations of the published code from the paper: how results change if they are corrected."""

from __future__ import annotations

from collections.abc import Mapping

from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.paired import Paired
from floral.report.sections.base import Cells, Material, Part, Section
from floral.report.summarise import result_unit, results, usual_seeds
from floral.report.tables import Cell, Column, grid, interval_cell

ALL_CORRECTIONS = "corrected"


def section(material: Material) -> Section | None:
    """Build the section: one table for each task that the suite runs as in the published code and with corrections.

    A correction follows the text of the paper in a point where the published code deviates from it.
    """
    parts, changes = [], []
    for official in material.collected.configurations:
        if official.fidelity == "official" and not official.switches:
            corrected = corrected_configurations(material.collected, official)
            if cells := correction_cells(material.collected, official, corrected):
                parts.append(_part(material, official, corrected, cells))
                changes += [cell for row in cells.values() for key, cell in row.items() if key != "official"]
    clear = sum(not cell.quiet for cell in changes)
    answer = f"{clear} of {len(changes)} corrections change a result by more than chance (95 % intervals)."
    return Section(id="corrections", answer=answer, parts=tuple(parts)) if parts else None


def corrected_configurations(collected: Collected, official: Configuration) -> dict[str, Configuration]:
    """Return the configurations that run the same task as `official`, but with corrections, as title → configuration.

    `official` follows the paper's published code. A correction changes one setting to follow the text of the paper. A
    configuration with one correction has the title `setting: value`. The one with all corrections comes last, with the
    title `corrected`.
    """
    same_task = [item for item in collected.configurations if item.task == official.task]
    single = {
        f"{switch}: {value}": item
        for item in same_task
        if item.fidelity == "official" and len(item.switches) == 1
        for switch, value in item.switches.items()
    }
    corrected = [item for item in same_task if item.fidelity == "corrected" and not item.switches]
    return {**single, **({ALL_CORRECTIONS: corrected[0]} if corrected else {})}


def correction_cells(
    collected: Collected, official: Configuration, corrected: Mapping[str, Configuration]
) -> dict[str, dict[str, Cell]]:
    """Return the cells of one task's table as method → column → cell.

    The column `official` has the mean of runs that follow the published code. Each other column has the change of this
    mean by a correction: the difference (corrected minus official), paired by seed.
    """
    usual, digits = usual_seeds(collected), result_unit(official).digits
    before = results(collected, official)
    cells: dict[str, dict[str, Cell]] = {}
    for correction, configuration in corrected.items():
        after = results(collected, configuration)
        for method in (method for method in before.values if method in after.values):
            paired = Paired(
                values={"before": before.values[method], "after": after.values[method]}, logarithmic=before.logarithmic
            )
            if (difference := paired.difference("after", "before")) is not None:
                mean = interval_cell(before.mean(method), digits, usual=usual)
                row = cells.setdefault(method, {"official": mean})
                cell = interval_cell(difference, digits, sign=True, usual=usual)
                quiet = not difference.is_decided
                row[correction] = Cell(text=cell.text, note=cell.note, order=cell.order, quiet=quiet)
    return cells


def _part(material: Material, official: Configuration, corrected: Mapping[str, Configuration], cells: Cells) -> Part:
    unit = result_unit(official)
    spanner = "Corrected \u00f7 official" if unit.logarithmic else f"Corrected \u2212 official, {unit.difference}"
    columns = [Column(id="official", title=f"Official: {unit.title}")]
    columns += [
        Column(id=correction, title="all" if correction == ALL_CORRECTIONS else correction, spanner=spanner)
        for correction in corrected
    ]
    title = official.task.title
    caption = f"{title}: {material.captions['corrections']['latex']}"
    return Part(title=title, table=grid(f"corrections_{official.id}", columns, material.rows(cells), caption))

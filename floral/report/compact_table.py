"""A compact table for a paper, like its main table: methods × tasks, mean ± standard deviation over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from floral.report import latex
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.style import Style
from floral.report.summarise import best, result_unit, results, seed_counts, seed_note, usual_seeds
from floral.report.tables import EMPTY, PLUS_MINUS, Cell, Column, number

CONFIGURATIONS = 6
"""Largest number of configurations side by side. Further ones get a second table."""


def compact_tables(collected: Collected, styles: Mapping[str, Style]) -> dict[str, str]:
    """Return LaTeX tables of all methods and configurations (tasks with their settings), as name → LaTeX."""
    every = collected.configurations
    groups = [every[start : start + CONFIGURATIONS] for start in range(0, len(every), CONFIGURATIONS)]
    names = [f"compact_{part}" if len(groups) > 1 else "compact" for part in range(1, len(groups) + 1)]
    return {name: _table(name, collected, styles, group) for name, group in zip(names, groups, strict=True)}


def _table(
    name: str, collected: Collected, styles: Mapping[str, Style], configurations: Sequence[Configuration]
) -> str:
    by_task = {item.id: _cells(collected, styles, item) for item in configurations}
    columns = [Column(id=item.id, title=item.title, spanner=result_unit(item).title) for item in configurations]
    rows = [
        (style, {task: cells[method] for task, cells in by_task.items() if method in cells})
        for method, style in styles.items()
        if any(method in cells for cells in by_task.values())
    ]
    return latex.table(name, columns, rows, _caption(collected, configurations), EMPTY)


def _caption(collected: Collected, configurations: Sequence[Configuration]) -> str:
    units = [result_unit(item) for item in configurations]
    spread = f"Mean {PLUS_MINUS} standard deviation over seeds"
    factor = "geometric mean ×/÷ geometric standard deviation over seeds"
    if all(unit.logarithmic for unit in units):
        spread = factor.capitalize()
    elif any(unit.logarithmic for unit in units):
        spread += f" (errors: {factor})"
    return f"{spread}. {latex.seeds_sentence(usual_seeds(collected))}"


def _cells(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> dict[str, Cell]:
    unit, paired, usual = result_unit(configuration), results(collected, configuration), usual_seeds(collected)
    bold = best(collected, styles, configuration).marked
    cells = {}
    for method, counts in seed_counts(collected, configuration).items():
        note = seed_note(counts)
        if method not in paired.values:
            cells[method] = Cell(text=EMPTY.text, note=note)
            continue
        n, text = len(paired.values[method]), number(paired.mean(method).mean, unit.digits)
        deviation = paired.deviation(method)
        if deviation is not None and math.isfinite(deviation):
            sign = "×/÷" if unit.logarithmic else PLUS_MINUS
            text += f" {sign} {number(deviation, unit.digits)}"
        count = "" if n == usual else f"n = {n}"
        cells[method] = Cell(
            text=text, note="; ".join(filter(None, (count, note))), mark="best" if method in bold else ""
        )
    return cells

"""Ranks of methods over the tasks of a suite, as a critical-difference diagram and as a table."""

from __future__ import annotations

import numpy as np
import polars as pl

from floral.report import statistics
from floral.report.charts.render import Figure, render
from floral.report.charts.rows import ranks as ranks_chart
from floral.report.compared import Configuration
from floral.report.sections.base import Material, Part
from floral.report.statistics import MAX_RANKED_METHODS, MIN_RANKED_TASKS, Ranks
from floral.report.summarise import REFERENCE, first_configurations, result_unit, results_on_all, seed_counts
from floral.report.tables import Cell, Column, grid, number


def ranked(material: Material) -> tuple[Ranks | None, str]:
    """Return the mean ranks of methods over tasks with an empty text, or None with the reason why there are no ranks.

    Only methods with a result on every task are ranked. Oracles (which know the true clusters) and controls (such as a
    constant prediction) are left out. If the suite runs a task with several settings, only the first setting counts.
    """
    table, configurations = _table(material), _first_configurations(material)
    tasks, methods = len(configurations), len(table)
    if tasks < MIN_RANKED_TASKS:
        return None, (
            f"Ranks over tasks (Friedman's and Wilcoxon's test, critical-difference diagram) are not shown: "
            f"they require {MIN_RANKED_TASKS} tasks, and this suite has {tasks}."
        )
    if not 3 <= methods <= MAX_RANKED_METHODS:
        return None, (
            f"Ranks over tasks are not shown: {methods} methods have a result on all {tasks} tasks, and a "
            f"critical-difference diagram requires 3 to {MAX_RANKED_METHODS} methods."
        )
    counts = [seed_counts(material.collected, configuration) for configuration in configurations]
    if any({"missing", "failed"} & of_task[method].keys() for of_task in counts for method in table):
        return None, "Ranks over tasks are not shown: some of the methods' runs are missing or failed."
    better = [result_unit(configuration).higher_is_better for configuration in configurations]
    return statistics.ranks(table, better), ""


def _first_configurations(material: Material) -> list[Configuration]:
    return first_configurations(material.collected.configurations)


def _table(material: Material) -> dict[str, list[float]]:
    """Return each method's mean results, one per task. Methods without a result on some task are left out."""
    methods = [method for method, style in material.styles.items() if style.group == "method"]
    return results_on_all(material.collected, _first_configurations(material), methods)


def figure(material: Material, ranks: Ranks) -> Figure:
    order = sorted(ranks.mean, key=lambda method: ranks.mean[method])
    styles = [material.styles[method] for method in order]
    frame = pl.DataFrame({"method_id": order, "rank": [ranks.mean[method] for method in order]})
    bars = [(group[0], group[-1]) for group in statistics.indistinguishable(ranks)]
    chart = ranks_chart(frame, styles, bars, material.preset)
    alt_text = f"Mean ranks over {ranks.tasks} tasks, best first: "
    alt_text += ", ".join(f"{style.short} {number(ranks.mean[style.id], 2)}" for style in styles) + "."
    subtitle = f"{_friedman(ranks)}; bars join methods less than {number(ranks.critical, 2)} ranks apart"
    return render(
        chart, material.preset, "ranks", f"Mean rank over {ranks.tasks} tasks (1 is best)", subtitle, alt_text
    )


def part(material: Material, ranks: Ranks) -> Part:
    """Build the table of mean ranks. A second column has p of Wilcoxon's test of each method against FLoRAL 1 %.

    This column is left out if p cannot reach 0.05 with this number of tasks, or if tasks have different metrics.
    """
    columns = [Column(id="rank", title="Mean rank")]
    cells = {method: {"rank": Cell(text=number(rank, 2), order=rank)} for method, rank in ranks.mean.items()}
    comparisons = len(ranks.mean) - 1
    same_unit = len({configuration.metric for configuration in _first_configurations(material)}) == 1
    note = f"{_friedman(ranks)}."
    if not same_unit:
        note += " There are no p-values of single pairs: Wilcoxon's test ranks differences, but "
        note += "their units differ between tasks."
    elif REFERENCE in ranks.mean and statistics.attainable(ranks.tasks, comparisons):
        for method, p in _wilcoxon(material).items():
            cells[method]["p"] = Cell(text=number(p, 3), order=p)
        columns.append(Column(id="p", title=f"Wilcoxon to {material.styles[REFERENCE].title}: p, Holm"))
    else:
        smallest = min(1.0, comparisons * statistics.least_p(ranks.tasks))
        note += (
            f" There are no p-values of single pairs: with {ranks.tasks} tasks and {comparisons} comparisons, the "
            f"smallest possible p is {number(smallest, 2)}."
        )
    table = grid("ranks", columns, material.rows(cells), f"Mean ranks over {ranks.tasks} tasks, 1 is best.")
    return Part(title=f"Mean ranks over {ranks.tasks} tasks", table=table, note=note)


def _friedman(ranks: Ranks) -> str:
    return f"Friedman p {'< 0.001' if ranks.p < 0.001 else f'= {number(ranks.p, 3)}'}"


def _wilcoxon(material: Material) -> dict[str, float]:
    table = _table(material)
    signs = [1 if result_unit(item).higher_is_better else -1 for item in _first_configurations(material)]
    reference = np.array(table[REFERENCE])
    return statistics.holm(
        {
            method: statistics.signed_rank(((np.array(values) - reference) * signs).tolist())
            for method, values in table.items()
            if method != REFERENCE
        }
    )

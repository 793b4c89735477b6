"""Methods' ranks over the tasks of a suite: who takes part, the critical-difference diagram, and its table."""

from __future__ import annotations

import numpy as np
import polars as pl

from floral.report import figures, statistics
from floral.report.collect import Configuration
from floral.report.figures import Figure
from floral.report.sections.base import Material, Part
from floral.report.statistics import METHODS, TASKS, Ranks
from floral.report.summarise import REFERENCE, lost, results, unit
from floral.report.tables import Cell, Column, grid, number


def ranked(material: Material) -> tuple[Ranks | None, str]:
    """The ranks of the methods (no oracle, no control) that have a mean on every task, or None and why there are none.

    A task counts once, in the first of its settings.
    """
    table = _table(material)
    tasks, methods = len(_tasks(material)), len(table)
    if tasks < TASKS:
        return None, (
            f"Ranks over tasks (Friedman's test, Wilcoxon's, a critical-difference diagram) are not shown: they need "
            f"{TASKS} tasks, here {'is' if tasks == 1 else 'are'} {tasks}."
        )
    if not 3 <= methods <= METHODS:
        return None, (
            f"Ranks over tasks are not shown: {methods} methods have a result on all {tasks} tasks, and a "
            f"critical-difference diagram takes from 3 to {METHODS}."
        )
    counts = [lost(material.collected, configuration) for configuration in _tasks(material)]
    if any({"missing", "failed"} & of_task[name].keys() for of_task in counts for name in table):
        return None, "Ranks over tasks are not shown: some of the methods' runs are missing or failed."
    better = [unit(material.collected, configuration).higher_is_better for configuration in _tasks(material)]
    return statistics.ranks(table, better), ""


def _tasks(material: Material) -> list[Configuration]:
    firsts: dict[str, Configuration] = {}
    for configuration in material.collected.configurations:
        firsts.setdefault(configuration.task.name, configuration)
    return list(firsts.values())


def _table(material: Material) -> dict[str, list[float]]:
    """method → its mean on each task, of those that have all."""
    found = [results(material.collected, configuration).values for configuration in _tasks(material)]
    rivals = [name for name, style in material.styles.items() if style.group == "method"]
    return {
        name: [float(np.mean(list(values[name].values()))) for values in found]
        for name in rivals
        if all(name in values for values in found)
    }


def figure(material: Material, found: Ranks) -> Figure:
    order = sorted(found.mean, key=lambda name: found.mean[name])
    shown = [material.styles[name] for name in order]
    frame = pl.DataFrame({"contender": order, "rank": [found.mean[name] for name in order]})
    bars = [(group[0], group[-1]) for group in statistics.alike(found)]
    chart = figures.ranks(frame, shown, bars)
    told = f"Mean ranks over {found.tasks} tasks, best first: "
    told += ", ".join(f"{style.short} {number(found.mean[style.id], 2)}" for style in shown) + "."
    subtitle = f"{_friedman(found)}; bars join methods less than {number(found.critical, 2)} ranks apart"
    return figures.render(chart, "ranks", f"Mean rank over {found.tasks} tasks (1 is best)", subtitle, told)


def part(material: Material, found: Ranks) -> Part:
    """Mean ranks, and Wilcoxon's p to the reference where one can be significant."""
    columns = [Column(id="rank", title="Mean rank")]
    cells = {name: {"rank": Cell(text=number(rank, 2), order=rank)} for name, rank in found.mean.items()}
    others = len(found.mean) - 1
    one_unit = len({configuration.metric for configuration in _tasks(material)}) == 1
    if tested := REFERENCE in found.mean and one_unit and statistics.attainable(found.tasks, others):
        for name, p in _wilcoxon(material).items():
            cells[name]["p"] = Cell(text=number(p, 3), order=p)
        columns.append(Column(id="p", title=f"Wilcoxon to {material.styles[REFERENCE].title}: p, Holm"))
    rows = material.rows(cells)
    least = min(1.0, others * statistics.least_p(found.tasks))
    note = f"{_friedman(found)}. " + (
        ""
        if tested
        else "No p-values of single pairs: Wilcoxon's test ranks differences, and these are in several units."
        if not one_unit
        else f"No p-values of single pairs: the least that {found.tasks} tasks can give for {others} comparisons is "
        f"{number(least, 2)}."
    )
    table = grid("ranks", columns, rows, f"Mean ranks over {found.tasks} tasks, 1 is best.")
    return Part(title=f"Mean ranks over {found.tasks} tasks", table=table, note=note.strip())


def _friedman(found: Ranks) -> str:
    return f"Friedman p {'< 0.001' if found.p < 0.001 else f'= {number(found.p, 3)}'}"


def _wilcoxon(material: Material) -> dict[str, float]:
    table = _table(material)
    signs = [
        1 if unit(material.collected, configuration).higher_is_better else -1 for configuration in _tasks(material)
    ]
    reference = np.array(table[REFERENCE])
    return statistics.holm(
        {
            name: statistics.signed_rank(((np.array(values) - reference) * signs).tolist())
            for name, values in table.items()
            if name != REFERENCE
        }
    )

"""Section with one table per task, which shows the results for each true cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from floral.core.intervals import mean_interval
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.sections.base import Material, Part, Section
from floral.report.summarise import methods_without_mean, result_unit, usual_seeds
from floral.report.tables import Cell, Column, Table, grid, interval_cell

GAP, DECILE = "gap", "decile"


def section(material: Material) -> Section | None:
    """Build the section. Return None if no task has results for at least two true clusters."""
    caption = material.captions["clusters"]["latex"]
    parts = []
    for configuration in material.collected.configurations:
        if cells := cluster_cells(material.collected, configuration):
            table = _table(material, configuration, cells, f"{configuration.title}: {caption}")
            note = _cluster_sizes(material.collected, configuration)
            parts.append(Part(title=configuration.title, note=note, table=table))
    return Section(id="clusters", parts=tuple(parts), opened=False) if parts else None


def cluster_cells(collected: Collected, configuration: Configuration) -> dict[str, dict[str, Cell]]:
    """Return the cells of one task's table as method → column → cell.

    Columns: one for each true cluster; `gap`, the difference between the best and the worst cluster; for regression
    also `decile`, the mean error of the worst 10 % of the clients. Runs that diverged are left out.
    """
    unit, usual = result_unit(configuration), usual_seeds(collected)
    excluded = methods_without_mean(collected, configuration)
    deciles = collected.values(configuration, "worst_decile_loss")
    cells: dict[str, dict[str, Cell]] = {}
    for method, by_seed in collected.values(configuration, f"cluster_{configuration.metric}").items():
        seeds = [[unit.scale * value for value in means] for means in by_seed.values() if None not in means]  # type: ignore[attr-defined]
        if method in excluded or not seeds or len(seeds[0]) < 2:
            continue

        def cell(values: Sequence[float]) -> Cell:
            return interval_cell(mean_interval(list(values), unit.logarithmic), unit.digits, usual=usual)

        cells[method] = {str(c): cell(values) for c, values in enumerate(zip(*seeds, strict=True))}
        cells[method][GAP] = cell([_gap(means, unit.logarithmic) for means in seeds])
        if method in deciles:
            cells[method][DECILE] = cell(list(deciles[method].values()))
    return cells


def _gap(means: Sequence[float], logarithmic: bool) -> float:
    """Return the best minus the worst accuracy of a cluster; for errors, the largest divided by the smallest."""
    if not logarithmic:
        return max(means) - min(means)
    return max(means) / min(means) if min(means) > 0 else math.inf if max(means) > 0 else 1.0


def _table(material: Material, configuration: Configuration, cells: dict[str, dict[str, Cell]], caption: str) -> Table:
    unit = result_unit(configuration)
    keys = list(dict.fromkeys(key for row in cells.values() for key in row))
    gap = "Worst \u00f7 best" if unit.logarithmic else f"Best \u2212 worst, {unit.difference}"
    titles = {GAP: gap, DECILE: "Worst decile of clients"}
    columns = [
        Column(id=f"c{key}", title=titles.get(key, key), spanner="" if key in titles else f"{unit.title}, of cluster")
        for key in keys
    ]
    prefixed = {method: {f"c{key}": cell for key, cell in row.items()} for method, row in cells.items()}
    return grid(f"clusters_{configuration.id}", columns, material.rows(prefixed), caption)


def _cluster_sizes(collected: Collected, configuration: Configuration) -> str:
    """Return a sentence with the number of clients in each true cluster, counted in the first run."""
    rows = collected.clients.filter(pl.col("configuration") == configuration.id)
    first = rows.filter((pl.col("method_id") == rows["method_id"][0]) & (pl.col("seed") == rows["seed"][0]))
    counts = first.group_by("cluster").len().sort("cluster")["len"].to_list()
    if len(set(counts)) == 1:
        return f"{counts[0]} clients in each cluster."
    return f"Clients in the clusters: {', '.join(map(str, counts))}."

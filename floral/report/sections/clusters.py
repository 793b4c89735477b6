"""The report's section on true clusters, one by one: a table for each setting that has several."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from floral.core.intervals import interval
from floral.report.collect import Collected, Configuration
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import unit, usual_seeds, without_mean
from floral.report.tables import Cell, Column, Table, grid, interval_cell

GAP, DECILE = "gap", "decile"


def section(material: Material) -> Section | None:
    """None where no setting has two true clusters, or all runs are of a version that did not keep their means."""
    caption = material.captions["clusters"]["latex"]
    parts = []
    for configuration in material.collected.configurations:
        if found := cluster_cells(material.collected, configuration):
            table = _table(material, configuration, found, f"{configuration.title}: {caption}")
            parts.append(Part(title=configuration.title, note=_sizes(material.collected, configuration), table=table))
    return Section(id="clusters", parts=tuple(parts), opened=False) if parts else None


def cluster_cells(collected: Collected, configuration: Configuration) -> dict[str, dict[str, Cell]]:
    """contender → true cluster, or `gap`, or `decile` in regression → cell, over the seeds that are done."""
    shown, usual, excluded = (
        unit(collected, configuration),
        usual_seeds(collected),
        without_mean(collected, configuration),
    )
    deciles = collected.values(configuration, "worst_decile_loss")
    cells: dict[str, dict[str, Cell]] = {}
    for name, seeds in collected.values(configuration, f"cluster_{configuration.metric}").items():
        every = [[shown.scale * value for value in means] for means in seeds.values() if None not in means]  # type: ignore[attr-defined]
        if name in excluded or not every or len(every[0]) < 2:
            continue

        def cell(values: Sequence[float]) -> Cell:
            return interval_cell(interval(list(values)), shown.digits, usual=usual)

        cells[name] = {str(c): cell(values) for c, values in enumerate(zip(*every, strict=True))}
        cells[name][GAP] = cell([max(means) - min(means) for means in every])
        if name in deciles:
            cells[name][DECILE] = cell(list(deciles[name].values()))
    return cells


def _table(material: Material, configuration: Configuration, cells: dict[str, dict[str, Cell]], caption: str) -> Table:
    shown = unit(material.collected, configuration)
    keys = list(dict.fromkeys(key for row in cells.values() for key in row))
    titles = {GAP: f"Best \u2212 worst, {shown.difference}", DECILE: "Worst decile of clients"}
    columns = [
        Column(id=f"c{key}", title=titles.get(key, key), spanner="" if key in titles else f"{shown.title}, of cluster")
        for key in keys
    ]
    rows: list[tuple[Style, dict[str, Cell]]] = [
        (style, {f"c{key}": cell for key, cell in cells[name].items()})
        for name, style in material.styles.items()
        if name in cells
    ]
    return grid(f"clusters_{configuration.id}", columns, rows, caption)


def _sizes(collected: Collected, configuration: Configuration) -> str:
    """How many clients the clusters have, in the first run."""
    rows = collected.clients.filter(pl.col("setting") == configuration.id)
    first = rows.filter((pl.col("contender") == rows["contender"][0]) & (pl.col("seed") == rows["seed"][0]))
    counts = first.group_by("cluster").len().sort("cluster")["len"].to_list()
    if len(set(counts)) == 1:
        return f"{counts[0]} clients in each cluster."
    return f"Clients in the clusters: {', '.join(map(str, counts))}."

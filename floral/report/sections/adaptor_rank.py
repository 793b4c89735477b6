"""Section with the results of one method for several ranks and numbers of its adaptors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from floral.core.intervals import Interval
from floral.report.charts.heat import heat
from floral.report.charts.render import Figure, Preset, render
from floral.report.compared import Configuration, MethodRow
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import Unit, intervals, result_unit, usual_seeds
from floral.report.tables import Column, Table, grid, interval_cell, number

SIZES = {"rank", "multiplier"}
"""The parameters of an adaptor's rank and of the number of adaptors per assumed cluster."""

Rank = float | str
"""A share of a layer's parameters (below 1), a number, or the name of a rule."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The results of one method on one task, for several ranks and numbers of adaptors."""

    configuration: Configuration
    results: dict[tuple[Rank, int], Interval]
    """(rank, number of adaptors) → result"""
    rows: dict[Rank, Style]
    """The style of the table row of each rank."""

    @property
    def ranks(self) -> list[Rank]:
        """The ranks of the sweep in increasing order. Ranks given by a word, such as `full` or `sqrt`, come last."""
        return sorted({rank for rank, _ in self.results}, key=lambda rank: (isinstance(rank, str), rank))

    @property
    def adaptors(self) -> list[int]:
        return sorted({adaptors for _, adaptors in self.results})

    @property
    def title(self) -> str:
        """The title of the task, followed by the settings of its fidelity.

        Fidelity says whether runs follow the paper's published code (`official`) or its text (`corrected`). The suite
        can also change single settings of a fidelity; the title then contains their values.
        """
        switches = [f"{name} {value}" for name, value in self.configuration.switches.items()]
        return ", ".join([self.configuration.task.title, f"{self.configuration.fidelity} fidelity", *switches])


def section(material: Material) -> Section | None:
    """Build the section. Return None if no method has results for several ranks and numbers of adaptors."""
    parts, figures = [], []
    for position, sweep in enumerate(sweeps(material)):
        name = f"rank_clusters_{position + 1}_{sweep.configuration.task.name}"
        unit = result_unit(sweep.configuration)
        parts.append(Part(title=f"{sweep.title}: {unit.title}", table=_table(material, sweep, name, unit)))
        figures.append(_figure(sweep, name, unit, material.preset))
    return Section(id="rank_clusters", figures=(tuple(figures),), parts=tuple(parts)) if parts else None


def sweeps(material: Material) -> Iterator[Sweep]:
    """Return one `Sweep` per method and task with results for at least two ranks and two numbers of adaptors.

    Tasks that differ only in `assumed_clusters` count as one. Tuned methods are left out.
    """
    collected = material.collected
    by_key: dict[tuple[str, str], Sweep] = {}
    for configuration in collected.configurations:
        means = intervals(collected, configuration)
        for method in collected.methods_on(configuration):
            if method.tuned or not method.variant.params.keys() >= SIZES or method.id not in means:
                continue
            key = (_task_key(configuration), _method_key(method))
            sweep = by_key.setdefault(key, Sweep(configuration=configuration, results={}, rows={}))
            rank = method.variant.params["rank"]
            adaptors = method.variant.params["multiplier"] * configuration.task.assumed
            sweep.results[rank, adaptors] = means[method.id]
            sweep.rows.setdefault(rank, dataclasses.replace(material.styles[method.id], title=rank_title(rank)))
    return (sweep for sweep in by_key.values() if len(sweep.ranks) > 1 and len(sweep.adaptors) > 1)


def rank_title(rank: Rank) -> str:
    return f"rank {100 * rank:g} %" if isinstance(rank, float) and rank < 1 else f"rank {rank}"


def _task_key(configuration: Configuration) -> str:
    task = configuration.task.model_dump_json(exclude={"assumed_clusters"})
    return json.dumps([task, configuration.fidelity, dict(configuration.switches)], sort_keys=True, default=str)


def _method_key(method: MethodRow) -> str:
    params: Mapping[str, object] = {k: v for k, v in method.variant.params.items() if k not in SIZES}
    return json.dumps([method.variant.method, params], sort_keys=True, default=str)


def _table(material: Material, sweep: Sweep, name: str, unit: Unit) -> Table:
    usual, clusters = usual_seeds(material.collected), sweep.configuration.task.clusters
    spanner = f"Adaptors ({clusters} true clusters)"
    columns = [Column(id=f"c{adaptors}", title=str(adaptors), spanner=spanner) for adaptors in sweep.adaptors]
    rows = [
        (
            sweep.rows[rank],
            {
                f"c{adaptors}": interval_cell(sweep.results[rank, adaptors], unit.digits, usual=usual)
                for adaptors in sweep.adaptors
                if (rank, adaptors) in sweep.results
            },
        )
        for rank in sweep.ranks
    ]
    caption = f"{sweep.title}, {unit.title}: {material.captions['rank_clusters']['latex']}"
    return grid(name, columns, rows, caption)


def _figure(sweep: Sweep, name: str, unit: Unit, preset: Preset) -> Figure:
    ranks, adaptors = [rank_title(rank) for rank in sweep.ranks], [str(count) for count in sweep.adaptors]
    rows = [
        (rank_title(rank), str(count), result.mean, result.low, result.high, number(result.mean, unit.digits))
        for (rank, count), result in sorted(sweep.results.items(), key=lambda item: (str(item[0][0]), item[0][1]))
    ]
    types = {"rank": pl.String, "adaptors": pl.String} | dict.fromkeys(("mean", "low", "high"), pl.Float64)
    frame = pl.DataFrame(rows, schema=types | {"text": pl.String}, orient="row")
    ordered = sorted(rows, key=lambda row: row[2], reverse=unit.higher_is_better)
    best, worst = (f"{row[0]} with {row[1]} adaptors, {row[5]}" for row in (ordered[0], ordered[-1]))
    see = f"Best mean: {best}; worst: {worst}."
    alt_text = f"{unit.title} by rank and number of adaptors, {sweep.title}: "
    alt_text += "; ".join(f"{rank}, {count}: {text}" for rank, count, *_, text in rows) + "."
    chart = heat(frame, adaptors, ranks, unit.higher_is_better, preset)
    subtitle = f"{unit.title}, mean; darker is better; {sweep.configuration.task.clusters} true clusters"
    return render(chart, preset, name, sweep.title, subtitle, alt_text, see)

"""A method's two sizes together: the rank of its adaptors × how many of them it reckons with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from floral.core.intervals import Interval
from floral.report import figures
from floral.report.collect import Configuration, MethodRow
from floral.report.figures import Figure
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import Unit, intervals, unit, usual_seeds
from floral.report.tables import Column, Table, grid, interval_cell, number

SIZES = {"rank", "multiplier"}
"""The parameters that tell a method's adaptors' rank, and how many of them it has for each assumed cluster."""

Rank = float | str
"""A share below 1, a number, or the name of a rule."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One method on one task in several sizes: (rank, adaptors) → its result, and how a row of that rank looks."""

    configuration: Configuration
    reached: dict[tuple[Rank, int], Interval]
    rows: dict[Rank, Style]

    @property
    def ranks(self) -> list[Rank]:
        """Shares and numbers by size, then rules."""
        return sorted({rank for rank, _ in self.reached}, key=lambda rank: (isinstance(rank, str), rank))

    @property
    def adaptors(self) -> list[int]:
        return sorted({adaptors for _, adaptors in self.reached})

    @property
    def title(self) -> str:
        """The task without its assumed clusters, which are an axis here."""
        turned = [f"{name} {value}" for name, value in self.configuration.switches.items()]
        return ", ".join([self.configuration.task.title, f"{self.configuration.fidelity} fidelity", *turned])


def section(material: Material) -> Section | None:
    """None where no method has been run with two ranks and two numbers of adaptors on one task."""
    parts, drawn = [], []
    for at, sweep in enumerate(sweeps(material)):
        name, measured = (
            f"rank_clusters_{at + 1}_{sweep.configuration.task.name}",
            unit(material.collected, sweep.configuration),
        )
        table = _table(material, sweep, name, measured)
        parts.append(Part(title=f"{sweep.title}: {measured.title}", table=table))
        drawn.append(_figure(sweep, name, measured))
    return Section(id="rank_clusters", figures=(tuple(drawn),), parts=tuple(parts)) if parts else None


def sweeps(material: Material) -> Iterator[Sweep]:
    """Every method and task with two ranks and two numbers of adaptors. Settings that differ in nothing but
    `assumed_clusters` are one task; tuned contenders, whose values differ by task, are left out."""
    collected = material.collected
    found: dict[tuple[str, str], Sweep] = {}
    for configuration in collected.configurations:
        means = intervals(collected, configuration)
        for method in collected.present(configuration):
            if method.tuned or not method.variant.params.keys() >= SIZES or method.id not in means:
                continue
            key = (_task(configuration), _method(method))
            sweep = found.setdefault(key, Sweep(configuration=configuration, reached={}, rows={}))
            rank = method.variant.params["rank"]
            sweep.reached[rank, method.variant.params["multiplier"] * configuration.task.assumed] = means[method.id]
            style = material.styles[method.id]
            sweep.rows.setdefault(rank, dataclasses.replace(style, title=rank_title(rank)))
    return (sweep for sweep in found.values() if len(sweep.ranks) > 1 and len(sweep.adaptors) > 1)


def rank_title(rank: Rank) -> str:
    return f"rank {100 * rank:g} %" if isinstance(rank, float) and rank < 1 else f"rank {rank}"


def _task(configuration: Configuration) -> str:
    task = configuration.task.model_dump_json(exclude={"assumed_clusters"})
    return json.dumps([task, configuration.fidelity, dict(configuration.switches)], sort_keys=True, default=str)


def _method(method: MethodRow) -> str:
    others: Mapping[str, object] = {k: v for k, v in method.variant.params.items() if k not in SIZES}
    return json.dumps([method.variant.method, others], sort_keys=True, default=str)


def _table(material: Material, sweep: Sweep, name: str, measured: Unit) -> Table:
    usual, true = usual_seeds(material.collected), sweep.configuration.task.clusters
    columns = [Column(id=f"c{n}", title=str(n), spanner=f"Adaptors ({true} true clusters)") for n in sweep.adaptors]
    rows = [
        (
            sweep.rows[rank],
            {
                f"c{n}": interval_cell(sweep.reached[rank, n], measured.digits, usual=usual)
                for n in sweep.adaptors
                if (rank, n) in sweep.reached
            },
        )
        for rank in sweep.ranks
    ]
    caption = f"{sweep.title}, {measured.title}: {material.captions['rank_clusters']['latex']}"
    return grid(name, columns, rows, caption)


def _figure(sweep: Sweep, name: str, measured: Unit) -> Figure:
    ranks, adaptors = [rank_title(rank) for rank in sweep.ranks], [str(n) for n in sweep.adaptors]
    rows = [
        (rank_title(rank), str(n), found.mean, found.low, found.high, number(found.mean, measured.digits))
        for (rank, n), found in sorted(sweep.reached.items(), key=lambda item: (str(item[0][0]), item[0][1]))
    ]
    types = {"rank": pl.String, "adaptors": pl.String} | dict.fromkeys(("mean", "low", "high"), pl.Float64)
    frame = pl.DataFrame(rows, schema=types | {"text": pl.String}, orient="row")
    ordered = sorted(rows, key=lambda row: row[2], reverse=measured.higher_is_better)
    best, worst = (f"{row[0]} with {row[1]} adaptors, {row[5]}" for row in (ordered[0], ordered[-1]))
    see = f"Best mean: {best}; worst: {worst}."
    told = f"{measured.title} by rank and number of adaptors, {sweep.title}: "
    told += "; ".join(f"{rank}, {n}: {text}" for rank, n, *_, text in rows) + "."
    chart = figures.heat(frame, adaptors, ranks, measured.higher_is_better)
    subtitle = f"{measured.title}, mean; darker is better; {sweep.configuration.task.clusters} true clusters"
    return figures.render(chart, name, sweep.title, subtitle, told, see)

"""The main comparison at equal rounds, equal bytes and equal client compute: who is where when all have spent alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from floral.report.collect import Collected, Configuration
from floral.report.paired import Paired
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import REFERENCE, best_two, lost, lost_note, unit, usual_seeds, without_mean
from floral.report.tables import THIN, Cell, Column, amount, grid, interval_cell

Budget = Literal["round", "bytes", "client_passes"]
Rule = Literal["last", "selected"]

BUDGETS: dict[Budget, str] = {"round": "Equal rounds", "bytes": "Equal bytes", "client_passes": "Equal client compute"}
UNITS: dict[Budget, str] = {"round": "", "bytes": "B", "client_passes": " passes"}
RULES: dict[Rule, str] = {"last": "Last round", "selected": "Selected round"}
ROUNDING = 1e-9
"""Sums of passes in another order differ by rounding; nobody loses an evaluation to that."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a run had reached: the result on its clients' own test rows, and the evaluated round it is from."""

    value: float
    round: int


Readings = dict[str, dict[int, Reading]]
"""contender → seed → reading"""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One budget of one setting: what each seed may spend, and what everyone has reached by then."""

    limits: dict[int, float]
    readings: dict[Rule, Readings]


def level(collected: Collected, styles: Mapping[str, Style], configuration: Configuration, budget: Budget) -> Level:
    """The largest budget that every method can spend, and the readings within it.

    Within a seed, where all methods have the same rows and cohorts, the budget is the least that any method has spent
    at its end; those that spend nothing set none, nor do oracles and controls, which are read all the same. `last` is
    the last evaluated round within it, `selected` the one of these with the least validation loss (of equal ones the
    first): nothing is interpolated, and test rows choose nothing.
    """
    rows = evaluations(collected, configuration)
    readings: dict[Rule, Readings] = {"last": {}, "selected": {}}
    limits: dict[int, float] = {}
    for (seed,), of_seed in rows.group_by("seed", maintain_order=True):
        ends = of_seed.group_by("contender", maintain_order=True).agg(pl.col(budget).max()).filter(pl.col(budget) > 0)
        rivals = ends.filter(pl.col("contender").is_in([n for n, style in styles.items() if style.group == "method"]))
        if ends.is_empty():
            continue
        limit = float((ends if rivals.is_empty() else rivals)[budget].min())  # type: ignore[arg-type]
        limits[int(seed)] = limit  # type: ignore[call-overload]
        within = of_seed.filter(pl.col(budget) <= limit * (1 + ROUNDING))
        for (name,), own in within.group_by("contender", maintain_order=True):
            chosen = {"last": own.row(-1, named=True)}
            valid = own.filter(pl.col("validation").is_finite())
            if not valid.is_empty():
                chosen["selected"] = valid.row(int(valid["validation"].arg_min()), named=True)  # type: ignore[arg-type]
            for rule, row in chosen.items():
                reading = Reading(value=row["value"], round=row["round"])
                readings[rule].setdefault(str(name), {})[int(seed)] = reading  # type: ignore[index, call-overload]
    return Level(limits=limits, readings=readings)


def evaluations(collected: Collected, configuration: Configuration) -> pl.DataFrame:
    """One row per done run and evaluated round, in order: contender, seed, round, bytes, client_passes, value,
    validation."""
    if collected.curves.is_empty():
        return pl.DataFrame(schema={"seed": pl.Int64})
    done = collected.summary.filter((pl.col("setting") == configuration.id) & (pl.col("status") == "done"))
    keys, spent = ["setting", "contender", "seed"], ["round", "bytes", "client_passes"]
    rows = collected.curves.join(done.select(keys), on=keys, how="semi", maintain_order="left")

    def of(metric: str, name: str) -> pl.DataFrame:
        return rows.filter(pl.col("metric") == metric).select(*keys, *spent, pl.col("value").alias(name))

    validation = of("validation/loss", "validation").drop("bytes", "client_passes")
    both = of(f"test/{configuration.metric}", "value").join(validation, on=[*keys, "round"], how="left")
    return both.filter(pl.col("value").is_finite()).sort("contender", "seed", "round")


# ------------------------------------------------------------------------------------------------ the table


def section(material: Material) -> Section | None:
    """Beside the figure of results against bytes, a table for each setting."""
    parts = []
    for configuration in material.collected.configurations:
        levels: dict[Budget, Level] = {}
        for budget in BUDGETS:
            if (found := level(material.collected, material.styles, configuration, budget)).limits:
                levels[budget] = found
        if levels:
            parts.append(_part(material, configuration, levels))
    figures = material.drawn("tradeoff")
    if not parts:
        return None
    return Section(id="budgets", figures=tuple((figure,) for figure in figures), layout="wide", parts=tuple(parts))


def _part(material: Material, configuration: Configuration, levels: Mapping[Budget, Level]) -> Part:
    cells: dict[str, dict[str, Cell]] = {}
    columns = []
    for budget, found in levels.items():
        spanner = f"{BUDGETS[budget]}: {_limit(found, budget)}"
        for rule, title in RULES.items():
            if not found.readings[rule]:
                continue
            columns.append(Column(id=f"{budget}.{rule}", title=title, spanner=spanner))
            for name, cell in _values(material, configuration, found.readings[rule]).items():
                cells.setdefault(name, {})[f"{budget}.{rule}"] = cell
            if budget != "round" or rule == "selected":
                columns.append(Column(id=f"{budget}.{rule}.round", title="read at", spanner=spanner))
                for name, seeds in found.readings[rule].items():
                    if name in cells:
                        cells[name][f"{budget}.{rule}.round"] = _rounds(seeds)
    measured = unit(material.collected, configuration)
    rows = material.rows(cells)
    caption = f"{configuration.title}, {measured.title}: {material.captions['budgets']['latex']}"
    table = grid(f"budgets_{configuration.id}", columns, rows, caption)
    return Part(title=f"{configuration.title}: {measured.title}", table=table)


def _values(material: Material, configuration: Configuration, readings: Readings) -> dict[str, Cell]:
    """contender → its mean and interval, and beneath it the paired difference to the reference."""
    collected, measured = material.collected, unit(material.collected, configuration)
    counts, excluded, usual = (
        lost(collected, configuration),
        without_mean(collected, configuration),
        usual_seeds(collected),
    )
    values = {
        name: {seed: measured.scale * one.value for seed, one in seeds.items()}
        for name, seeds in readings.items()
        if name not in excluded
    }
    found = Paired(values=values)
    marked = best_two(found, counts, material.styles, measured.higher_is_better)
    cells = {name: Cell(text=lost_note(counts[name])) for name in readings if name in excluded}
    for name in values:
        paired = None
        if REFERENCE in values and name != REFERENCE:
            paired = found.difference(name, REFERENCE)
        note = interval_cell(paired, measured.digits, sign=True, usual=paired.n).text if paired else ""
        cells[name] = interval_cell(
            found.mean(name), measured.digits, note=note, mark=marked.get(name, ""), usual=usual
        )
    return cells


def _limit(found: Level, budget: Budget) -> str:
    low, high = (amount(end(found.limits.values())) for end in (min, max))
    told = low if low == high else f"{low} to {high}"
    return f"{told}{THIN if budget == 'bytes' and told[-1].isdigit() else ''}{UNITS[budget]}"


def _rounds(seeds: Mapping[int, Reading]) -> Cell:
    rounds = [one.round for one in seeds.values()]
    low, high = min(rounds), max(rounds)
    return Cell(text=str(low) if low == high else f"{low}\u2013{high}", order=sum(rounds) / len(rounds), quiet=True)

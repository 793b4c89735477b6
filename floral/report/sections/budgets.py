"""Section that compares methods at equal rounds, at equal bytes and at equal client compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.paired import Paired
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import (
    REFERENCE,
    best_of,
    methods_without_mean,
    result_unit,
    seed_counts,
    seed_note,
    usual_seeds,
)
from floral.report.tables import THIN, Cell, Column, amount, grid, interval_cell

Budget = Literal["round", "bytes", "client_passes"]
Rule = Literal["last", "selected"]

BUDGETS: dict[Budget, str] = {"round": "Equal rounds", "bytes": "Equal bytes", "client_passes": "Equal client compute"}
UNITS: dict[Budget, str] = {"round": "", "bytes": "B", "client_passes": " passes"}
RULES: dict[Rule, str] = {"last": "Last round", "selected": "Selected round"}
RELATIVE_TOLERANCE = 1e-9
"""Passes that are summed in another order differ by rounding. Such an evaluation is still within the budget."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The result of a run at one evaluated round, on each client's own test samples."""

    value: float
    round: int


Readings = dict[str, dict[int, Reading]]
"""method → seed → reading"""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A budget of rounds, bytes or forward-backward passes, and the result of each method within this budget.

    limits: seed → budget. readings: rule → method → seed → result. The rule selects a round within the budget: the last
    one, or the one with the smallest validation loss.
    """

    limits: dict[int, float]
    readings: dict[Rule, Readings]


def level(collected: Collected, styles: Mapping[str, Style], configuration: Configuration, budget: Budget) -> Level:
    """Find a common budget of rounds, bytes or passes for each seed, and the results of methods within this budget.

    The budget is the smallest amount that any method spends in its whole run. Oracles, controls and methods that spend
    nothing do not count for this minimum, unless no other method is left (then all methods that spend more than 0
    count).

    Two rules select the round of the result. `last` takes the last evaluated round within the budget. `selected` takes
    the evaluated round within the budget with the smallest validation loss (the earliest of equal ones). Nothing is
    interpolated, and test samples are not used to select a round. A method has no result if it has no evaluated round
    within the budget.
    """
    rows = evaluations(collected, configuration)
    methods = [method for method, style in styles.items() if style.group == "method"]
    readings: dict[Rule, Readings] = {"last": {}, "selected": {}}
    limits: dict[int, float] = {}
    for (seed,), of_seed in rows.group_by("seed", maintain_order=True):
        totals = of_seed.group_by("method_id", maintain_order=True).agg(pl.col(budget).max()).filter(pl.col(budget) > 0)
        of_methods = totals.filter(pl.col("method_id").is_in(methods))
        if totals.is_empty():
            continue
        limit = float((totals if of_methods.is_empty() else of_methods)[budget].min())  # type: ignore[arg-type]
        limits[int(seed)] = limit  # type: ignore[call-overload]
        within = of_seed.filter(pl.col(budget) <= limit * (1 + RELATIVE_TOLERANCE))
        for (method,), evaluated in within.group_by("method_id", maintain_order=True):
            selection = {"last": evaluated.row(-1, named=True)}
            valid = evaluated.filter(pl.col("validation").is_finite())
            if not valid.is_empty():
                smallest = int(valid["validation"].arg_min())  # type: ignore[arg-type]
                selection["selected"] = valid.row(smallest, named=True)
            for rule, row in selection.items():
                reading = Reading(value=row["value"], round=row["round"])
                readings[rule].setdefault(str(method), {})[int(seed)] = reading  # type: ignore[index, call-overload]
    return Level(limits=limits, readings=readings)


def evaluations(collected: Collected, configuration: Configuration) -> pl.DataFrame:
    """Return one row per evaluated round of each run that did not diverge, sorted by method, seed and round.

    Columns: method_id, seed, round, bytes, client_passes (forward-backward passes), value (accuracy or loss on test
    samples), validation (loss on validation samples).
    """
    if collected.curves.is_empty():
        return pl.DataFrame(schema={"seed": pl.Int64})
    done = collected.summary.filter((pl.col("configuration") == configuration.id) & (pl.col("status") == "done"))
    keys, spent = ["configuration", "method_id", "seed"], ["round", "bytes", "client_passes"]
    rows = collected.curves.join(done.select(keys), on=keys, how="semi", maintain_order="left")

    def values_of(metric: str, name: str) -> pl.DataFrame:
        return rows.filter(pl.col("metric") == metric).select(*keys, *spent, pl.col("value").alias(name))

    validation = values_of("validation/loss", "validation").drop("bytes", "client_passes")
    test = values_of(f"test/{configuration.metric}", "value")
    joined = test.join(validation, on=[*keys, "round"], how="left")
    return joined.filter(pl.col("value").is_finite()).sort("method_id", "seed", "round")


# ------------------------------------------------------------------------------------------------ the table


def section(material: Material) -> Section | None:
    """Build the section: figures of results against bytes, and one table for each task with its settings."""
    parts = []
    for configuration in material.collected.configurations:
        levels: dict[Budget, Level] = {}
        for budget in BUDGETS:
            at_budget = level(material.collected, material.styles, configuration, budget)
            if at_budget.limits:
                levels[budget] = at_budget
        if levels:
            parts.append(_part(material, configuration, levels))
    if not parts:
        return None
    figures = (material.figures_of("tradeoff"),)
    return Section(id="budgets", figures=figures, parts=tuple(parts))


def _part(material: Material, configuration: Configuration, levels: Mapping[Budget, Level]) -> Part:
    cells: dict[str, dict[str, Cell]] = {}
    columns = []
    for budget, at_budget in levels.items():
        spanner = f"{BUDGETS[budget]}: {_limit(at_budget, budget)}"
        for rule, title in RULES.items():
            readings = at_budget.readings[rule]
            if not readings:
                continue
            columns.append(Column(id=f"{budget}.{rule}", title=title, spanner=spanner))
            for method, cell in _value_cells(material, configuration, readings).items():
                cells.setdefault(method, {})[f"{budget}.{rule}"] = cell
            if budget != "round" or rule == "selected":
                columns.append(Column(id=f"{budget}.{rule}.round", title="at round", spanner=spanner))
                for method, by_seed in readings.items():
                    if method in cells:
                        cells[method][f"{budget}.{rule}.round"] = _rounds_cell(by_seed)
    unit = result_unit(configuration)
    caption = f"{configuration.title}, {unit.title}: {material.captions['budgets']['latex']}"
    table = grid(f"budgets_{configuration.id}", columns, material.rows(cells), caption)
    return Part(title=f"{configuration.title}: {unit.title}", table=table)


def _value_cells(material: Material, configuration: Configuration, readings: Readings) -> dict[str, Cell]:
    """Return one cell per method: its mean with interval, and below it the paired difference to FLoRAL 1 %."""
    collected, unit = material.collected, result_unit(configuration)
    counts, usual = seed_counts(collected, configuration), usual_seeds(collected)
    excluded = methods_without_mean(collected, configuration)
    values = {
        method: {seed: unit.scale * reading.value for seed, reading in by_seed.items()}
        for method, by_seed in readings.items()
        if method not in excluded
    }
    paired = Paired(values=values, logarithmic=unit.logarithmic)
    bold = best_of(paired, collected, material.styles, configuration).marked
    cells = {method: Cell(text=seed_note(counts[method])) for method in readings if method in excluded}
    for method in values:
        difference = None
        if REFERENCE in values and method != REFERENCE:
            difference = paired.difference(method, REFERENCE)
        note = interval_cell(difference, unit.digits, sign=True, usual=difference.n).text if difference else ""
        mark = "best" if method in bold else ""
        cells[method] = interval_cell(paired.mean(method), unit.digits, note=note, mark=mark, usual=usual)
    return cells


def _limit(at_budget: Level, budget: Budget) -> str:
    low, high = (amount(end(at_budget.limits.values())) for end in (min, max))
    text = low if low == high else f"{low} to {high}"
    return f"{text}{THIN if budget == 'bytes' and text[-1].isdigit() else ''}{UNITS[budget]}"


def _rounds_cell(by_seed: Mapping[int, Reading]) -> Cell:
    rounds = [reading.round for reading in by_seed.values()]
    low, high = min(rounds), max(rounds)
    return Cell(text=str(low) if low == high else f"{low}\u2013{high}", order=sum(rounds) / len(rounds), quiet=True)

"""The report's section on tuning: what each tuned contender was given, out of what, and what it gained by that."""

from __future__ import annotations

from collections.abc import Mapping

from floral.config.schema.tuning import Tuned
from floral.config.search_space import edges
from floral.config.searches import Search
from floral.config.suites import suite_searches
from floral.config.tuned import tuned_path, tuned_values
from floral.report import summarise
from floral.report.collect import Collected, Configuration, MethodRow
from floral.report.sections.base import Material, Part, Section
from floral.report.tables import EMPTY, Cell, Column, grid, interval_cell, number

CHOSEN, VALIDATION = "Chosen", "Validation loss"
COLUMNS = {
    "lr": ("learning rate", CHOSEN), "router_lr": ("router's", CHOSEN), "others": ("others", CHOSEN),
    "default": ("untuned", VALIDATION), "best": ("chosen", VALIDATION), "ended": ("ended", "Configurations"),
}  # fmt: skip


def section(material: Material) -> Section | None:
    """A table for each setting with tuned contenders, its note what all of its searches have in common."""
    collected, styles, caption = material.collected, material.styles, material.captions["tuning"]["latex"]
    if not any(method.tuned for method in collected.methods):
        return None
    searches = {(s.task.name, s.variant.name): s for s in suite_searches(collected.suite).values()}
    parts = []
    for configuration in collected.configurations:
        tuned = {one.id: one for one in collected.present(configuration) if one.tuned}
        if not tuned:
            continue
        values = tuned_values(configuration.task.name)
        entries = {id_: values[one.variant.name] for id_, one in tuned.items()}
        mine = {id_: searches[configuration.task.name, one.variant.name] for id_, one in tuned.items()}
        gains = _gains(collected, configuration, tuned)
        cells = {id_: {**_cells(mine[id_], entries[id_]), **gains.get(id_, {})} for id_ in tuned}
        unit = summarise.unit(collected, configuration)
        heads = COLUMNS | ({} if not gains else {
            "untuned": ("untuned", f"Test: {unit.title}"), "tuned": ("tuned", f"Test: {unit.title}"),
            "gain": ("difference", f"Test: {unit.title}"),
        })  # fmt: skip
        columns = [Column(id=key, title=title, spanner=spanner) for key, (title, spanner) in heads.items()]
        rows = [(style, cells[id_]) for id_, style in styles.items() if id_ in cells]
        table = grid(f"tuning_{configuration.id}", columns, rows, f"{configuration.title}: {caption}")
        parts.append(Part(title=configuration.title, table=table, note=_facts(configuration, mine, entries)))
    return Section(id="tuning", parts=tuple(parts))


def _cells(search: Search, entry: Tuned) -> dict[str, Cell]:
    """The chosen values, marked where they lie at the grid's edge, and what was measured while choosing."""
    at_edge = edges(search.axes, entry.rates, entry.params)
    cells = {
        name: Cell(text=f"{rate:.3g}", note="edge" if name in at_edge else "", order=rate)
        for name, rate in entry.rates.model_dump().items()
        if len(search.axes[name]) > 1
    }
    if entry.params:
        others = ", ".join(f"{name} {value}" for name, value in entry.params.items())
        on = ", ".join(name for name in entry.params if name in at_edge)
        cells["others"] = Cell(text=others, note=f"edge: {on}" if on else "")
    best = min(loss for loss in entry.losses if loss is not None)
    cells["best"] = Cell(text=_loss(best), order=best)
    if entry.default is not None:
        cells["default"] = Cell(text=_loss(entry.default), order=entry.default)
    ended = entry.budget - entry.losses.count(None)
    cells["ended"] = Cell(text=f"{ended} of {entry.budget}", order=ended)
    return cells


def _gains(
    collected: Collected, configuration: Configuration, tuned: Mapping[str, MethodRow]
) -> dict[str, dict[str, Cell]]:
    """Tuned contender → its test result beside that of its untuned namesake, where the suite runs both."""
    unit, usual = summarise.unit(collected, configuration), summarise.usual_seeds(collected)
    reached = summarise.results(collected, configuration)
    found = {}
    for id_, method in tuned.items():
        namesake = method.variant.name
        if id_ == namesake or id_ not in reached.values or namesake not in reached.values:
            continue
        cells = {
            "untuned": interval_cell(reached.mean(namesake), unit.digits, usual=usual),
            "tuned": interval_cell(reached.mean(id_), unit.digits, usual=usual),
        }
        difference = reached.difference(id_, namesake)
        cells["gain"] = EMPTY if difference is None else interval_cell(difference, unit.digits, sign=True, usual=usual)
        found[id_] = cells
    return found


def _facts(configuration: Configuration, searches: Mapping[str, Search], entries: Mapping[str, Tuned]) -> str:
    """Budget, seeds, rounds, range of the learning rates and provenance."""
    search = next(iter(searches.values()))
    rule = search.tuning
    seeds = f"seed{'s' * (len(rule.seeds) > 1)} {', '.join(map(str, rule.seeds))}"
    low, high = (f"{configuration.task.lr * factor:.3g}" for factor in (rule.lr.lowest, rule.lr.highest))
    commits = ", ".join(sorted({entry.commit or "unknown" for entry in entries.values()}))
    return (
        f"{rule.budget} configurations of every method, {seeds}, "
        f"{search.task.rounds} of {configuration.task.rounds} rounds; "
        f"learning rates from {low} to {high} (untuned: {configuration.task.lr:g}). "
        f"{tuned_path(configuration.task.name)}, "
        f"searched at commit {commits}."
    )


def _loss(value: float) -> str:
    return number(value, 3) if value < 100 else f"{value:.3g}"

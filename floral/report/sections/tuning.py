"""Section on tuning: each tuned method's selected values, their validation loss, and the gain on test samples."""

from __future__ import annotations

from collections.abc import Mapping

from floral.config.schema.tuning import Tuned
from floral.config.search_space import edges
from floral.config.searches import Search
from floral.config.suites import suite_searches
from floral.config.tuned import tuned_path, tuned_values
from floral.report.collect import Collected
from floral.report.compared import Configuration, MethodRow
from floral.report.sections.base import Material, Part, Section
from floral.report.summarise import result_unit, results, usual_seeds
from floral.report.tables import EMPTY, Cell, Column, grid, interval_cell, number

SELECTED, VALIDATION = "Selected", "Validation loss"
COLUMNS = {
    "lr": ("learning rate", SELECTED), "router_lr": ("router's learning rate", SELECTED),
    "params": ("others", SELECTED),
    "default": ("untuned", VALIDATION), "best": ("selected", VALIDATION), "ended": ("completed", "Candidates"),
}  # fmt: skip
"""column → its title and its spanner"""


def section(material: Material) -> Section | None:
    """Build the section: one table for each task with tuned methods.

    A note below a table states what is the same for all its methods, such as the number of tried settings.
    """
    collected, caption = material.collected, material.captions["tuning"]["latex"]
    if not any(method.tuned for method in collected.methods):
        return None
    searches = {(s.task.name, s.variant.name): s for s in suite_searches(collected.suite).values()}
    parts, tuned_methods, at_edge = [], 0, 0
    for configuration in collected.configurations:
        tuned = {method.id: method for method in collected.methods_on(configuration) if method.tuned}
        if not tuned:
            continue
        task = configuration.task.name
        values = tuned_values(task)
        entries = {id_: values[method.variant.name] for id_, method in tuned.items()}
        of_methods = {id_: searches[task, method.variant.name] for id_, method in tuned.items()}
        gains = _gains(collected, configuration, tuned)
        cells = {id_: {**_cells(of_methods[id_], entries[id_]), **gains.get(id_, {})} for id_ in tuned}
        tuned_methods += len(tuned)
        at_edge += sum(any(cell.note.startswith("edge") for cell in row.values()) for row in cells.values())
        spanner = f"Test: {result_unit(configuration).title}"
        gain_columns = {
            "untuned": ("untuned", spanner), "tuned": ("tuned", spanner), "gain": ("difference", spanner),
        }  # fmt: skip
        heads = COLUMNS | (gain_columns if gains else {})
        columns = [Column(id=key, title=title, spanner=spanner) for key, (title, spanner) in heads.items()]
        table = grid(f"tuning_{configuration.id}", columns, material.rows(cells), f"{configuration.title}: {caption}")
        parts.append(Part(title=configuration.title, table=table, note=_note(configuration, of_methods, entries)))
    answer = f"{at_edge} of {tuned_methods} searches selected a value at the edge of their grid."
    return Section(id="tuning", answer=answer, parts=tuple(parts))


def _cells(search: Search, entry: Tuned) -> dict[str, Cell]:
    """Return the cells of a tuned method: selected values, validation losses and the number of completed candidates.

    A candidate is a set of values that the tuning tries. Values at the edge of the search space are marked with `edge`.
    """
    at_edge = edges(search.axes, entry.rates, entry.params)
    cells = {
        name: Cell(text=f"{rate:.3g}", note="edge" if name in at_edge else "", order=rate)
        for name, rate in entry.rates.model_dump().items()
        if len(search.axes[name]) > 1
    }
    if entry.params:
        text = ", ".join(f"{name} {value}" for name, value in entry.params.items())
        edge_names = ", ".join(name for name in entry.params if name in at_edge)
        cells["params"] = Cell(text=text, note=f"edge: {edge_names}" if edge_names else "")
    best = min(loss for loss in entry.losses if loss is not None)
    cells["best"] = Cell(text=_loss(best), order=best)
    if entry.default is not None:
        cells["default"] = Cell(text=_loss(entry.default), order=entry.default)
    completed = entry.budget - entry.losses.count(None)
    cells["ended"] = Cell(text=f"{completed} of {entry.budget}", order=completed)
    return cells


def _gains(
    collected: Collected, configuration: Configuration, tuned: Mapping[str, MethodRow]
) -> dict[str, dict[str, Cell]]:
    """Return each tuned method's test result, the test result of the same method untuned, and their paired difference.

    Methods that the suite does not also run untuned are left out.
    """
    unit, usual = result_unit(configuration), usual_seeds(collected)
    paired = results(collected, configuration)
    gains = {}
    for id_, method in tuned.items():
        untuned = method.variant.name
        if id_ == untuned or id_ not in paired.values or untuned not in paired.values:
            continue
        cells = {
            "untuned": interval_cell(paired.mean(untuned), unit.digits, usual=usual),
            "tuned": interval_cell(paired.mean(id_), unit.digits, usual=usual),
        }
        difference = paired.difference(id_, untuned)
        cells["gain"] = EMPTY if difference is None else interval_cell(difference, unit.digits, sign=True, usual=usual)
        gains[id_] = cells
    return gains


def _note(configuration: Configuration, searches: Mapping[str, Search], entries: Mapping[str, Tuned]) -> str:
    """Return a note on how methods were tuned: number of tried settings, seeds, rounds and learning rates."""
    search = next(iter(searches.values()))
    rule, task = search.tuning, configuration.task
    seeds = f"seed{'s' * (len(rule.seeds) > 1)} {', '.join(map(str, rule.seeds))}"
    low, high = (f"{task.lr * factor:.3g}" for factor in (rule.lr.lowest, rule.lr.highest))
    commits = ", ".join(sorted({entry.commit or "unknown" for entry in entries.values()}))
    return (
        f"{rule.budget} candidates for every method, {seeds}, {search.task.rounds} of {task.rounds} rounds; learning "
        f"rates from {low} to {high} (untuned: {task.lr:g}). Values from {tuned_path(task.name)}, "
        f"searched at commit {commits}."
    )


def _loss(value: float) -> str:
    return number(value, 3) if value < 100 else f"{value:.3g}"

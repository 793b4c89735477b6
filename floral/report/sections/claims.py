"""Section that states which claims of the paper (arXiv 2410.03497) hold in this suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from floral.core.intervals import Interval
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import REFERENCE, results
from floral.report.tables import Cell, Column, grid, interval_cell, number

Claim = Literal["holds", "fails", "undecided", "no personalisation"]

CLAIMS = {
    "scarce": ("Better than a mixture of full models where data are scarce", ("ensemble", "ensemble_optimal")),
    "local": ("Better than an adaptor of each client's own", ("local_adaptor", "local_adaptor")),
}
"""claim → its sentence, and the variants compared with FLoRAL: with a learned router and with the optimal router."""
GLOBAL_MODEL = "fedavg"
"""The variant with one model for all clients, without personalisation."""
CHANCE_ARI = 0.05
"""Routes with a lower mean adjusted Rand index find the true clusters no better than chance would."""


def claim(difference: Interval, to_global: Interval | None = None, ari: float | None = None) -> Claim:
    """Return the verdict on the claim that FLoRAL is better than another method.

    difference: mean accuracy of FLoRAL minus that of the other method, with its 95 % interval. The claim holds if the
    interval lies above 0, and fails if it lies below 0. It is undecided if the interval contains 0 or is missing.

    to_global: the same difference to FedAvg. ari: the mean adjusted Rand index of FLoRAL's routes. If FedAvg is better,
    or if the routes are at chance and FLoRAL is not better than FedAvg, then FLoRAL does not personalise, and a better
    result than another method shows nothing. The verdict is then `no personalisation` instead of `holds`.
    """
    if not difference.is_decided:
        return "undecided"
    if difference.mean < 0:
        return "fails"
    if to_global is None:
        return "holds"
    at_chance = ari is not None and ari < CHANCE_ARI
    is_better = to_global.is_decided and to_global.mean > 0
    is_worse = to_global.is_decided and to_global.mean < 0
    return "no personalisation" if is_worse or (at_chance and not is_better) else "holds"


def section(material: Material) -> Section | None:
    """Build the section: one table per claim, with one row per FLoRAL variant and one column per task."""
    cells = {name: claim_cells(material.collected, _configurations(material, name), name) for name in CLAIMS}
    parts = [_part(material, name, rows) for name in CLAIMS if (rows := material.rows(cells[name]))]
    if not parts:
        return None
    counts = {CLAIMS[name][0]: row[REFERENCE]["count"].text for name, row in cells.items() if REFERENCE in row}
    holds = [f"{sentence}: {count} tasks" for sentence, count in counts.items()]
    answer = f"{material.styles[REFERENCE].title}. {'; '.join(holds)}." if holds else ""
    return Section(id="claims", answer=answer, parts=tuple(parts))


def claim_cells(collected: Collected, configurations: Sequence[Configuration], name: str) -> dict[str, dict[str, Cell]]:
    """Return the cells of the table of one claim, as FLoRAL variant → task → cell.

    The column `count` says in how many tasks the claim holds.
    """
    _, compared_variants = CLAIMS[name]
    titles = {method.id: method.title for method in collected.methods}
    floral = [method for method in collected.methods if method.variant.method == "floral"]
    cells: dict[str, dict[str, Cell]] = {}
    counts: Counter[tuple[str, Claim]] = Counter()
    for configuration in configurations:
        paired, aris = results(collected, configuration), collected.values(configuration, "ari")
        for method in floral:
            compared = compared_variants[method.variant.optimal_router]
            if method.id not in paired.values or compared not in paired.values:
                continue
            difference = paired.difference(method.id, compared)
            if difference is None:
                continue
            has_global = GLOBAL_MODEL in paired.values
            to_global = paired.difference(method.id, GLOBAL_MODEL) if has_global else None
            ari_by_seed = [value for value in aris.get(method.id, {}).values() if value is not None]
            ari = fmean(ari_by_seed) if ari_by_seed and configuration.task.concepts > 1 else None
            verdict = claim(difference, to_global, ari)
            counts[method.id, verdict] += 1
            notes = [f"minus {titles[compared]}: {_points(difference)}"]
            if to_global is not None:
                notes.append(f"minus {titles[GLOBAL_MODEL]}: {_points(to_global)}")
            if ari is not None and not method.variant.optimal_router:
                notes.append(f"ARI {number(ari, 2)}")
            cells.setdefault(method.id, {})[configuration.id] = Cell(
                text=verdict,
                note="; ".join(notes),
                order=difference.mean,
                quiet=verdict in ("undecided", "no personalisation"),
            )
    return {method: {**row, "count": _count(counts, method)} for method, row in cells.items()}


def _configurations(material: Material, name: str) -> list[Configuration]:
    """Return the configurations on which a claim is checked."""
    classified = [item for item in material.collected.configurations if item.metric == "accuracy"]
    return [item for item in classified if name != "scarce" or item.task.partition.share < 1]


def _part(material: Material, name: str, rows: Sequence[tuple[Style, Mapping[str, Cell]]]) -> Part:
    columns = [Column(id="count", title="Holds")]
    columns += [Column(id=item.id, title=item.title) for item in _configurations(material, name)]
    return Part(title=CLAIMS[name][0], table=grid(f"claim_{name}", columns, rows, material.captions["claims"]["latex"]))


def _points(difference: Interval) -> str:
    cell = interval_cell(difference, 1, sign=True, usual=difference.n)
    return " ".join(filter(None, (cell.text, cell.note)))


def _count(counts: Counter[tuple[str, Claim]], method: str) -> Cell:
    total = sum(count for (name, _), count in counts.items() if name == method)
    return Cell(text=f"{counts[method, 'holds']} of {total}", order=counts[method, "holds"])

"""Section that states which claims of the paper (arXiv 2410.03497) hold in this suite."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from floral.core.intervals import Interval
from floral.report.sections.base import Material, Part, Section
from floral.report.summarise import results
from floral.report.tables import Cell, Column, grid, interval_cell

Claim = Literal["holds", "fails", "undecided"]

CLAIMS = {
    "scarce": ("Better than a mixture of full models where data are scarce", ("ensemble", "ensemble_optimal")),
    "local": ("Better than an adaptor of each client's own", ("local_adaptor", "local_adaptor")),
}
"""claim → its sentence, and the variants compared with FLoRAL: with a learned router and with the optimal router."""


def claim(difference: Interval) -> Claim:
    """Return `holds`, `fails` or `undecided` for the claim that FLoRAL is better than another method.

    difference: mean accuracy of FLoRAL minus that of the other method, with its 95 % interval. The claim holds if the
    interval lies above 0, and fails if it lies below 0. It is undecided if the interval contains 0 or is missing.
    """
    if not difference.is_decided:
        return "undecided"
    return "holds" if difference.mean > 0 else "fails"


def section(material: Material) -> Section | None:
    """Build the section: one table per claim, with one row per FLoRAL variant and one column per task."""
    parts = [part for name in CLAIMS if (part := _part(material, name)) is not None]
    return Section(id="claims", parts=tuple(parts)) if parts else None


def _part(material: Material, name: str) -> Part | None:
    title, compared_variants = CLAIMS[name]
    collected = material.collected
    floral = [method for method in collected.methods if method.variant.method == "floral"]
    configurations = [item for item in collected.configurations if item.metric == "accuracy"]
    if name == "scarce":
        configurations = [item for item in configurations if item.task.partition.share < 1]
    cells: dict[str, dict[str, Cell]] = {}
    counts: Counter[tuple[str, Claim]] = Counter()
    for configuration in configurations:
        paired = results(collected, configuration)
        for method in floral:
            compared = compared_variants[method.variant.optimal_router]
            if method.id not in paired.values or compared not in paired.values:
                continue
            difference = paired.difference(method.id, compared)
            if difference is None:
                continue
            verdict = claim(difference)
            counts[method.id, verdict] += 1
            value = interval_cell(difference, 1, sign=True, usual=difference.n)
            cells.setdefault(method.id, {})[configuration.id] = Cell(
                text=verdict,
                note=" ".join(filter(None, (value.text, value.note))),
                order=difference.mean,
                quiet=verdict == "undecided",
            )
    rows = material.rows({method: {**row, "count": _count(counts, method)} for method, row in cells.items()})
    if not rows:
        return None
    columns = [Column(id="count", title="Holds")]
    columns += [Column(id=configuration.id, title=configuration.title) for configuration in configurations]
    return Part(title=title, table=grid(f"claim_{name}", columns, rows, material.captions["claims"]["latex"]))


def _count(counts: Counter[tuple[str, Claim]], method: str) -> Cell:
    total = sum(count for (name, _), count in counts.items() if name == method)
    return Cell(text=f"{counts[method, 'holds']} of {total}", order=counts[method, "holds"])

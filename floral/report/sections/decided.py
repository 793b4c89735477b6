"""Section with each method's difference to FLoRAL 1 %, significance tests, and ranks over tasks."""

from __future__ import annotations

from floral.core.intervals import Interval
from floral.report import statistics
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.sections import method_ranks
from floral.report.sections.base import Material, Part, Section
from floral.report.summarise import REFERENCE, result_unit, results, usual_seeds
from floral.report.tables import EMPTY, Cell, Column, Table, grid, interval_cell, number


def section(material: Material) -> Section | None:
    """Build the section: each task's differences between the methods and the reference method, and ranks over tasks.

    The reference method is FLoRAL 1 %. A task has no table if no other method has a seed in common with it.
    """
    parts = [part for item in material.collected.configurations if (part := _part(material, item)) is not None]
    ranks, reason = method_ranks.ranked(material)
    if ranks is not None:
        parts.append(method_ranks.part(material, ranks))
    if not parts:
        return None
    figures = () if ranks is None else ((method_ranks.figure(material, ranks),),)
    return Section(id="decided", figures=figures, parts=tuple(parts), opened=False, note=reason)


def _part(material: Material, configuration: Configuration) -> Part | None:
    unit, cells = result_unit(configuration), decided_cells(material.collected, configuration)
    if not cells:
        return None
    columns = [
        Column(id="difference", title=f"\u2212 {material.styles[REFERENCE].title}, {unit.difference}"),
        Column(id="verdict", title="Verdict"),
        *([Column(id="p", title="p, Holm")] if any("p" in row for row in cells.values()) else []),
        Column(id="more", title="More seeds to decide"),
    ]
    caption = f"{configuration.title}: {material.captions['decided']['latex']}"
    table: Table = grid(f"decided_{configuration.id}", columns, material.rows(cells), caption)
    return Part(title=configuration.title, table=table, note=_why_no_p(material.collected, configuration))


def decided_cells(collected: Collected, configuration: Configuration) -> dict[str, dict[str, Cell]]:
    """Return the cells of one task's table as method → column → cell.

    Columns: `difference` to FLoRAL 1 %, `verdict` (better, worse or open), `more` (estimated number of
    further seeds until the verdict is no longer open), and `p` of a sign-flip test. The column `p` is left out if p
    cannot reach 0.05 with this number of seeds.
    """
    paired, unit = results(collected, configuration), result_unit(configuration)
    by_method = _differences(collected, configuration)
    corrected = statistics.holm({method: statistics.sign_flip(by_seed) for method, by_seed in by_method.items()})
    cells: dict[str, dict[str, Cell]] = {}
    for method, by_seed in by_method.items():
        difference = paired.difference(method, REFERENCE)
        assert difference is not None, "a seed is shared"
        cells[method] = {
            "difference": interval_cell(difference, unit.digits, sign=True, usual=usual_seeds(collected)),
            "verdict": _verdict(difference, unit.higher_is_better),
            "more": EMPTY if difference.excludes_zero or not any(by_seed) else _more_seeds(by_seed),
        }
        if statistics.attainable(len(by_seed), len(by_method)):
            p = corrected[method]
            cells[method]["p"] = Cell(text=number(p, 3) if p >= 0.001 else "< 0.001", order=p)
    return cells


def _differences(collected: Collected, configuration: Configuration) -> dict[str, list[float]]:
    """Return each method's differences to FLoRAL 1 %: one for each seed that both have."""
    paired = results(collected, configuration)
    if REFERENCE not in paired.values:
        return {}
    by_method = {method: paired.differences(method, REFERENCE) for method in paired.values if method != REFERENCE}
    return {method: by_seed for method, by_seed in by_method.items() if by_seed}


def _verdict(difference: Interval, higher_is_better: bool) -> Cell:
    if difference.low is None:
        return Cell(text="no interval", note="one seed", quiet=True)
    if difference.low == difference.high == 0:
        return Cell(text="equal", note="bit for bit", quiet=True, order=0.0)
    if not difference.excludes_zero:
        return Cell(text="open", quiet=True, order=0.0)
    better = (difference.mean > 0) == higher_is_better
    return Cell(text="better" if better else "worse", order=1.0 if better else -1.0)


def _more_seeds(by_seed: list[float]) -> Cell:
    if len(by_seed) < 2:
        return Cell(text="unknown", quiet=True)
    needed = statistics.seeds_to_decide(by_seed)
    if needed is None:
        return Cell(text="> 1,000", order=1000.0, quiet=True)
    return Cell(text=str(max(1, needed - len(by_seed))), order=float(needed - len(by_seed)))


def _why_no_p(collected: Collected, configuration: Configuration) -> str:
    by_method = _differences(collected, configuration)
    pairs = max(len(by_seed) for by_seed in by_method.values())
    if statistics.attainable(pairs, len(by_method)):
        return ""
    smallest = min(1.0, len(by_method) * statistics.least_p(pairs))
    return (
        f"There are no p-values: with {pairs} pair{'s' if pairs > 1 else ''} of seeds and Holm's correction for "
        f"{len(by_method)} comparison{'s' if len(by_method) > 1 else ''}, the smallest possible p is "
        f"{number(smallest, 2)}."
    )

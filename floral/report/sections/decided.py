"""The report's section on what the seeds decide: differences to the reference, their p-values, ranks over tasks."""

from __future__ import annotations

from floral.core.intervals import Interval
from floral.report import statistics
from floral.report.collect import Collected, Configuration
from floral.report.sections import rank_diagram
from floral.report.sections.base import Material, Part, Section
from floral.report.summarise import REFERENCE, results, unit, usual_seeds
from floral.report.tables import EMPTY, Cell, Column, Table, grid, interval_cell, number


def section(material: Material) -> Section | None:
    """A table for each setting in which a seed has both the reference and another, and the ranks over tasks."""
    parts = [
        found
        for configuration in material.collected.configurations
        if (found := _part(material, configuration)) is not None
    ]
    ranked, why = rank_diagram.ranked(material)
    if ranked is not None:
        parts.append(rank_diagram.part(material, ranked))
    if not parts:
        return None
    figures = () if ranked is None else ((rank_diagram.figure(material, ranked),),)
    return Section(id="decided", figures=figures, parts=tuple(parts), opened=False, note=why)


def _part(material: Material, configuration: Configuration) -> Part | None:
    shown, cells = unit(material.collected, configuration), decided_cells(material.collected, configuration)
    if not cells:
        return None
    columns = [
        Column(id="difference", title=f"\u2212 {material.styles[REFERENCE].title}, {shown.difference}"),
        Column(id="verdict", title="These seeds say"),
        *([Column(id="p", title="p, Holm")] if any("p" in row for row in cells.values()) else []),
        Column(id="more", title="More seeds to decide"),
    ]
    rows = material.rows(cells)
    caption = f"{configuration.title}: {material.captions['decided']['latex']}"
    table: Table = grid(f"decided_{configuration.id}", columns, rows, caption)
    return Part(title=configuration.title, table=table, note=_why_no_p(material.collected, configuration))


def decided_cells(collected: Collected, configuration: Configuration) -> dict[str, dict[str, Cell]]:
    """contender → `difference`, `verdict`, `p` where one can be significant, `more` where it is open → cell."""
    found, shown = results(collected, configuration), unit(collected, configuration)
    pairs = _pairs(collected, configuration)
    corrected = statistics.holm({name: statistics.sign_flip(pair) for name, pair in pairs.items()})
    cells: dict[str, dict[str, Cell]] = {}
    for name, pair in pairs.items():
        difference = found.difference(name, REFERENCE)
        assert difference is not None, "the pair has a seed"
        cells[name] = {
            "difference": interval_cell(difference, shown.digits, sign=True, usual=usual_seeds(collected)),
            "verdict": _verdict(difference, shown.higher_is_better),
            "more": EMPTY if difference.excludes_zero or not any(pair) else _more(pair),
        }
        if statistics.attainable(len(pair), len(pairs)):
            p = corrected[name]
            cells[name]["p"] = Cell(text=number(p, 3) if p >= 0.001 else "< 0.001", order=p)
    return cells


def _pairs(collected: Collected, configuration: Configuration) -> dict[str, list[float]]:
    """contender → its differences to the reference, seed by seed."""
    found = results(collected, configuration)
    if REFERENCE not in found.values:
        return {}
    pairs = {name: found.differences(name, REFERENCE) for name in found.values if name != REFERENCE}
    return {name: pair for name, pair in pairs.items() if pair}


def _verdict(difference: Interval, higher_is_better: bool) -> Cell:
    if difference.low is None:
        return Cell(text="nothing", note="one seed", quiet=True)
    if difference.low == difference.high == 0:
        return Cell(text="equal", note="bit by bit", quiet=True, order=0.0)
    if not difference.excludes_zero:
        return Cell(text="open", quiet=True, order=0.0)
    better = (difference.mean > 0) == higher_is_better
    return Cell(text="better" if better else "worse", order=1.0 if better else -1.0)


def _more(pair: list[float]) -> Cell:
    if len(pair) < 2:
        return Cell(text="unknown", quiet=True)
    needed = statistics.seeds_to_decide(pair)
    if needed is None:
        return Cell(text="> 1,000", order=1000.0, quiet=True)
    return Cell(text=str(max(1, needed - len(pair))), order=float(needed - len(pair)))


def _why_no_p(collected: Collected, configuration: Configuration) -> str:
    pairs = _pairs(collected, configuration)
    most = max(len(pair) for pair in pairs.values())
    if statistics.attainable(most, len(pairs)):
        return ""
    least = min(1.0, len(pairs) * statistics.least_p(most))
    return (
        f"No p-values: the least that {most} pair{'s' if most > 1 else ''} of seeds can give, after Holm's correction "
        f"for {len(pairs)} comparison{'s' if len(pairs) > 1 else ''}, is {number(least, 2)}."
    )

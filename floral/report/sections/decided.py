"""Section with each method's difference to FLoRAL 1 %, significance tests, and ranks over tasks."""

from __future__ import annotations

from dataclasses import replace

from floral.report import sentences, statistics
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.comparison import Comparison
from floral.report.sections import method_ranks
from floral.report.sections.base import Material, Part, Section
from floral.report.summarise import REFERENCE, best, comparisons, intervals, result_unit, usual_seeds
from floral.report.tables import EMPTY, Cell, Column, Table, grid, interval_cell, number


def section(material: Material) -> Section | None:
    """Build the section: each task's best methods, differences to the reference method, and ranks over tasks.

    The reference method is FLoRAL 1 %. A task has no table of differences if no other method has a seed in common with
    it.
    """
    tables = [make(material, item) for make in (best_part, _part) for item in material.collected.configurations]
    parts = [part for part in tables if part is not None]
    ranks, reason = method_ranks.ranked(material)
    if ranks is not None:
        parts.append(method_ranks.part(material, ranks))
    if not parts:
        return None
    figures = () if ranks is None else ((method_ranks.figure(material, ranks),),)
    answer, *more = sentences.against_reference(material.collected, material.styles) or [""]
    note = " ".join(filter(None, (reason, *more)))
    return Section(id="decided", answer=answer, figures=figures, parts=tuple(parts), opened=False, note=note)


def _part(material: Material, configuration: Configuration) -> Part | None:
    unit, cells = result_unit(configuration), decided_cells(material.collected, configuration)
    if not cells:
        return None
    reference = material.styles[REFERENCE].title
    titles = {
        "difference": f"{unit.minus(reference)} ({unit.worse})", "verdict": "Verdict", "p": "p, Holm",
        "sign_flip": "p, sign flips", "more": "More seeds to decide",
    }  # fmt: skip
    columns = [
        Column(id=key, title=title) for key, title in titles.items() if any(key in row for row in cells.values())
    ]
    caption = f"{configuration.title}: {material.captions['decided']['latex']}"
    table: Table = grid(f"decided_{configuration.id}", columns, material.rows(cells), caption)
    return Part(title=f"{configuration.title}: every method against {reference}", table=table)


def decided_cells(collected: Collected, configuration: Configuration) -> dict[str, dict[str, Cell]]:
    """Return the cells of one task's table as method → column → cell.

    Columns: `difference` to FLoRAL 1 %, `verdict` (better, worse or open), `p` of the paired t-test after Holm's
    correction, `sign_flip` (p of the exact sign-flip test, where there are enough seeds that it can be at most 0.05),
    and `more` (estimated number of further seeds until the verdict is no longer open).
    """
    unit = result_unit(configuration)
    cells: dict[str, dict[str, Cell]] = {}
    for method, item in comparisons(collected, configuration).items():
        decided = item.difference.is_decided or item.verdict == "equal"
        cells[method] = {
            "difference": interval_cell(item.difference, unit.digits, sign=True, usual=usual_seeds(collected)),
            "verdict": _verdict_cell(item),
            "p": EMPTY if item.p is None else _p_cell(item.p),
            "more": EMPTY if decided else _more_seeds(item.differences),
        }
        if statistics.attainable(item.difference.n):
            cells[method]["sign_flip"] = _p_cell(item.sign_flip, quiet=True)
    return cells


def best_part(material: Material, configuration: Configuration) -> Part | None:
    """Build the table of the methods that cannot be told from the best one; None if there is no such set."""
    members = best(material.collected, material.styles, configuration).members
    if not members:
        return None
    unit, means = result_unit(configuration), intervals(material.collected, configuration)
    usual = usual_seeds(material.collected)
    columns = [
        Column(id="value", title=unit.title),
        Column(id="bound", title=f"May be worse by, {unit.difference}"),
        Column(id="detectable", title=f"Detectable, {unit.difference}"),
    ]
    cells = {
        method: {
            "value": interval_cell(means[method], unit.digits, usual=usual),
            "bound": Cell(text=number(member.may_be_worse, unit.digits), order=member.may_be_worse),
            "detectable": Cell(text=number(member.detectable, unit.digits), order=member.detectable),
        }
        for method, member in members.items()
    }
    caption = f"{configuration.title}: {material.captions['decided']['latex_best']}"
    rows = sorted(material.rows(cells), key=lambda row: means[row[0].id].mean, reverse=unit.higher_is_better)
    in_one_group = [(replace(style, family="Best mean first"), row) for style, row in rows]
    table = grid(f"best_{configuration.id}", columns, in_one_group, caption)
    return Part(title=f"{configuration.title}: methods that cannot be told from the best", table=table)


def _verdict_cell(item: Comparison) -> Cell:
    order = {"better": 1.0, "worse": -1.0}.get(item.verdict, 0.0)
    if item.verdict == "equal":
        return Cell(text="equal", note="bit for bit", quiet=True, order=order)
    if item.verdict == "one seed":
        return Cell(text="no interval", note="one seed", quiet=True)
    note = "" if item.survives or item.verdict == "open" else "not after Holm"
    return Cell(text=item.verdict, note=note, quiet=item.verdict == "open", order=order)


def _p_cell(p: float, quiet: bool = False) -> Cell:
    return Cell(text=number(p, 3) if p >= 0.001 else "< 0.001", order=p, quiet=quiet)


def _more_seeds(by_seed: list[float]) -> Cell:
    if len(by_seed) < 2:
        return Cell(text="unknown", quiet=True)
    needed = statistics.seeds_to_decide(by_seed)
    if needed is None:
        return Cell(text="> 1,000", order=1000.0, quiet=True)
    return Cell(text=str(max(1, needed - len(by_seed))), order=float(needed - len(by_seed)))

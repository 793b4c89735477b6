"""The published table beside ours, cell by cell, and which of the paper's claims hold (arXiv 2410.03497)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import polars as pl

from floral.config import catalogue, paths
from floral.config.reading import ConfigError
from floral.core.intervals import Interval, t_interval
from floral.report.collect import Collected, Configuration, MethodRow
from floral.report.sections.base import Material, Part, Section
from floral.report.statistics import welch_difference
from floral.report.summarise import means, results, scaled, without_mean
from floral.report.tables import PLUS_MINUS, Cell, Column, grid, interval_cell, number

SEEDS = 3
"""Of every published mean; the publication names them for one task and they are taken to be the same for all."""
CLOSE = 3.0
"""Points within which a difference counts as none."""
CLEAR = 1.0
"""Points that a difference must exceed to count as one."""

Verdict = Literal["agrees", "differs", "inconclusive", "not comparable"]
Claim = Literal["holds", "fails", "undecided"]

CLAIMS = {
    "scarce": ("Better than a mixture of full models where data are scarce", ("ensemble", "ensemble_optimal")),
    "local": ("Better than an adaptor of each client's own", ("local_adaptor", "local_adaptor")),
}
"""claim → what it says, and the rival of FLoRAL with a learned and with the optimal router."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A cell of the published table, in per cent: mean and standard deviation over SEEDS seeds."""

    mean: float
    deviation: float

    @property
    def undecidable(self) -> bool:
        """Whether no number of seeds of ours could show agreement: its own 90 % interval is wider than CLOSE allows."""
        half = welch_difference([self.mean, self.mean], self.mean, self.deviation, SEEDS, 0.9).half_width
        return half is not None and half > CLOSE


@cache
def published() -> dict[tuple[str, str], Published]:
    """(task, variant) → the published cell, from config/published.csv.

    Raises:
        ConfigError: the file is missing or lacks a column.
    """
    path = paths.CONFIG_FOLDER / "published.csv"
    try:
        rows = pl.read_csv(path, comment_prefix="#").select("task", "method", "optimal_router", "mean", "std")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path}: unreadable ({error}); restore it from the repository") from None
    return {
        (task, f"{method}_optimal" if optimal else method): Published(mean=mean, deviation=deviation)
        for task, method, optimal, mean, deviation in rows.iter_rows()
    }


# ------------------------------------------------------------------------------------------ cell by cell


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our mean of a published cell: the difference in points with Welch's 95 % interval, and what follows from it."""

    ours: Interval
    published: Published
    difference: Interval
    verdict: Verdict


def compare(values: list[float], cell: Published, comparable: bool = True) -> Comparison:
    """`values` in per cent, one of each seed, against a published cell.

    agrees: the 90 % interval of the difference lies within ±CLOSE points. differs: its 95 % interval excludes 0 and it
    exceeds CLEAR points. Else, and with one seed, inconclusive.
    """
    difference = welch_difference(values, cell.mean, cell.deviation, SEEDS)
    narrow = welch_difference(values, cell.mean, cell.deviation, SEEDS, 0.9)
    verdict: Verdict = "inconclusive"
    if not comparable:
        verdict = "not comparable"
    elif narrow.low is not None and narrow.high is not None and max(-narrow.low, narrow.high) <= CLOSE:
        verdict = "agrees"
    elif difference.excludes_zero and abs(difference.mean) > CLEAR:
        verdict = "differs"
    return Comparison(ours=t_interval(values), published=cell, difference=difference, verdict=verdict)


def comparisons(collected: Collected, configuration: Configuration) -> dict[str, Comparison]:
    """contender → its comparison, where task, variant and switches are as published: none of the suite's own, untuned.

    Under official fidelity ours is the official score, the counterpart of what was published, else the accuracy.
    """
    if configuration.task != catalogue.task(configuration.task.name) or configuration.switches:
        return {}
    column = "official_score" if configuration.fidelity == "official" else "test_accuracy"
    comparable = configuration.fidelity == "official" or configuration.task.published_split == "test"
    values, excluded = collected.values(configuration, column), without_mean(collected, configuration)
    shown = means(collected, configuration, column, 100)
    return {
        one.id: replace(compare(list(scaled(values[one.id], 100).values()), cell, comparable), ours=shown[one.id])
        for one in collected.present(configuration)
        if _plain(one) and one.id in values and one.id not in excluded
        if (cell := published().get((configuration.task.name, one.variant.name)))
    }


def _plain(one: MethodRow) -> bool:
    return one.id == one.variant.name and not one.tuned and one.variant == catalogue.variant(one.variant.name)


def section(material: Material) -> Section | None:
    """A table for each setting, and the counts of all of a fidelity below its first."""
    found = {
        configuration.id: comparisons(material.collected, configuration)
        for configuration in material.collected.configurations
    }
    columns = [
        Column(id="published", title="Published, %"), Column(id="ours", title="Ours, %"),
        Column(id="difference", title="Difference, points"), Column(id="verdict", title="Verdict"),
    ]  # fmt: skip
    parts: list[Part] = []
    counted: set[str] = set()
    for configuration in material.collected.configurations:
        rows = material.rows({id_: _cells(one) for id_, one in found[configuration.id].items()})
        if not rows:
            continue
        note = ""
        if configuration.fidelity not in counted:
            counted.add(configuration.fidelity)
            alike = [one.id for one in material.collected.configurations if one.fidelity == configuration.fidelity]
            note = told(configuration.fidelity, [cell for id_ in alike for cell in found[id_].values()])
        caption = f"{configuration.title}: {material.captions['published']['latex']}"
        parts.append(
            Part(
                title=configuration.title,
                table=grid(f"published_{configuration.id}", columns, rows, caption),
                note=note,
            )
        )
    return Section(id="published", parts=tuple(parts)) if parts else None


def told(fidelity: str, cells: list[Comparison]) -> str:
    """The counts of all verdicts, and how many cells no experiment can decide."""
    counts = Counter(cell.verdict for cell in cells)
    said = ", ".join(f"{counts[name]} {name}" for name in ("agrees", "differs", "inconclusive") if cells)
    apart = f", {counts['not comparable']} not comparable" if counts["not comparable"] else ""
    hopeless = sum(cell.published.undecidable for cell in cells)
    why = (
        f" In {hopeless} of them the published spread alone is too wide for agreement, whatever is measured here."
        if hopeless
        else ""
    )
    return f"Of {len(cells)} published cells in this report under {fidelity} fidelity: {said}{apart}.{why}"


def _cells(found: Comparison) -> dict[str, Cell]:
    cell = found.published
    note = "too wide to agree with" if cell.undecidable else ""
    return {
        "published": Cell(
            text=f"{number(cell.mean, 1)} {PLUS_MINUS} {number(cell.deviation, 1)}", note=note, order=cell.mean
        ),
        "ours": interval_cell(found.ours, 1, usual=SEEDS),
        "difference": interval_cell(found.difference, 1, sign=True, usual=SEEDS),
        "verdict": Cell(text=found.verdict, quiet=found.verdict in ("inconclusive", "not comparable")),
    }


# ----------------------------------------------------------------------------------------------- claims


def claim(difference: Interval) -> Claim:
    """Whether a paired difference to a rival shows that one is better: its 95 % interval excludes 0."""
    if not difference.excludes_zero:
        return "undecided"
    return "holds" if difference.mean > 0 else "fails"


def claims(material: Material) -> Section | None:
    """A table for each claim: FLoRAL variants down, settings across."""
    collected = material.collected
    ours = [one for one in collected.methods if one.variant.method == "floral" and one.id in material.styles]
    parts = []
    for name, (title, rivals) in CLAIMS.items():
        tasks = [one for one in collected.configurations if one.metric == "accuracy"]
        if name == "scarce":
            tasks = [one for one in tasks if one.task.partition.share < 1]
        columns, cells, counts = [], {}, Counter()
        for configuration in tasks:
            found = results(collected, configuration)
            for one in ours:
                rival = rivals[one.variant.optimal_router]
                if one.id not in found.values or rival not in found.values:
                    continue
                difference = found.difference(one.id, rival)
                if difference is None:
                    continue
                said = claim(difference)
                counts[one.id, said] += 1
                quiet = said == "undecided"
                beneath = interval_cell(difference, 1, sign=True, usual=difference.n)
                cells.setdefault(one.id, {})[configuration.id] = Cell(
                    text=said,
                    note=" ".join(filter(None, (beneath.text, beneath.note))),
                    order=difference.mean,
                    quiet=quiet,
                )
            columns.append(Column(id=configuration.id, title=configuration.title))
        rows = material.rows({id_: {**own, "count": _count(counts, id_)} for id_, own in cells.items()})
        if rows:
            columns = [Column(id="count", title="Holds"), *columns]
            parts.append(
                Part(title=title, table=grid(f"claim_{name}", columns, rows, material.captions["claims"]["latex"]))
            )
    return Section(id="claims", parts=tuple(parts)) if parts else None


def _count(counts: Counter[tuple[str, Claim]], id_: str) -> Cell:
    of = sum(count for (name, _), count in counts.items() if name == id_)
    return Cell(text=f"{counts[id_, 'holds']} of {of}", order=counts[id_, "holds"])

"""Section that compares our results with the published table (arXiv 2410.03497)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import polars as pl
from scipy.stats import binomtest
from scipy.stats import t as student

from floral.config import catalogue, layers
from floral.config.reading import ConfigError
from floral.core.intervals import Interval, t_interval
from floral.report.collect import Collected
from floral.report.compared import Configuration, MethodRow
from floral.report.sections.base import Material, Part, Section
from floral.report.statistics import welch_difference
from floral.report.summarise import means, methods_without_mean, scaled
from floral.report.tables import PLUS_MINUS, Cell, Column, grid, interval_cell, number

PUBLISHED_SEEDS = 3
"""Seeds of every published mean. The publication states them for one task; they are assumed for all."""
EQUIVALENCE_POINTS = 3.0
"""Differences up to this many points count as equivalent."""
MIN_DIFFERENCE_POINTS = 1.0
"""Smaller differences never count as different."""
MARGINS = (1, 2, 3, 4, 5, 6)
"""Margins, in points, for which the cells that agree are counted."""
MIN_SIGNS = 6
"""With fewer cells, a sign test cannot reach 5 %."""

Verdict = Literal["agrees", "differs", "inconclusive", "not comparable"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell of the published table: mean and standard deviation over PUBLISHED_SEEDS seeds, in per cent."""

    mean: float
    deviation: float

    @property
    def undecidable(self) -> bool:
        """Whether the verdict `agrees` is impossible for any number of our seeds, because `deviation` is too large."""
        return _least_half_width() * self.deviation / math.sqrt(PUBLISHED_SEEDS) > EQUIVALENCE_POINTS


@cache
def _least_half_width() -> float:
    """Return the least half width of the 90 % interval of a difference, in units of the published standard error.

    With many seeds of ours, whose squared standard error is r times the published one, Welch's interval has
    (n − 1)(1 + r)² degrees of freedom, for n published seeds. Its half width t·√(1 + r) is least at an r above 0.
    """
    r = np.linspace(0, 3, 3001)
    widths = student.ppf(0.95, (PUBLISHED_SEEDS - 1) * (1 + r) ** 2) * np.sqrt(1 + r)
    return float(widths.min())


@cache
def published() -> dict[tuple[str, str], Published]:
    """Return the paper's table of results (config/published.csv) as (task, variant) → mean and standard deviation.

    Raises:
        ConfigError: the file cannot be read or lacks a column.
    """
    path = layers.file("published.csv")
    try:
        rows = pl.read_csv(path, comment_prefix="#").select("task", "method", "optimal_router", "mean", "std")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"file {path} cannot be read ({error}); restore this file from the repository") from None
    return {
        (task, f"{method}_optimal" if optimal else method): Published(mean=mean, deviation=deviation)
        for task, method, optimal, mean, deviation in rows.iter_rows()
    }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our mean, the published mean, their difference in points with Welch's 95 % interval, and the verdict.

    `narrow` is the difference with its 90 % interval, which decides whether the cell agrees.
    """

    mean: Interval
    published: Published
    difference: Interval
    narrow: Interval
    verdict: Verdict


def compare(values: list[float], cell: Published, comparable: bool = True) -> Comparison:
    """Compare our values (one per seed, in per cent) with a published mean and standard deviation.

    The possible verdicts are:
    `agrees`: the 90 % interval of the difference lies within ±EQUIVALENCE_POINTS points.
    `differs`: the 95 % interval of the difference excludes 0, and the difference exceeds MIN_DIFFERENCE_POINTS points.
    `inconclusive`: neither of these two is the case, or there is only one seed.
    `not comparable`: `comparable` is False, because the paper measured accuracy on other samples.
    """
    difference = welch_difference(values, cell.mean, cell.deviation, PUBLISHED_SEEDS)
    narrow = welch_difference(values, cell.mean, cell.deviation, PUBLISHED_SEEDS, 0.9)
    verdict: Verdict = "inconclusive"
    if not comparable:
        verdict = "not comparable"
    elif narrow.low is not None and narrow.high is not None and max(-narrow.low, narrow.high) <= EQUIVALENCE_POINTS:
        verdict = "agrees"
    elif difference.is_decided and abs(difference.mean) > MIN_DIFFERENCE_POINTS:
        verdict = "differs"
    return Comparison(mean=t_interval(values), published=cell, difference=difference, narrow=narrow, verdict=verdict)


def comparisons(collected: Collected, configuration: Configuration) -> dict[str, Comparison]:
    """Compare the methods of one task with their published results, as method → comparison.

    A method is left out if it is tuned, or if one of its settings or of the task's settings differs from the
    publication. If runs follow the published code, our value is the official score, which is measured as in this code.
    If they follow the text of the paper, it is the accuracy.
    """
    if configuration.task != catalogue.task(configuration.task.name) or configuration.switches:
        return {}
    column = "official_score" if configuration.fidelity == "official" else "test_accuracy"
    comparable = configuration.fidelity == "official" or configuration.task.published_split == "test"
    values, excluded = collected.values(configuration, column), methods_without_mean(collected, configuration)
    mean = means(collected, configuration, column, 100)
    cells = published()
    compared = {}
    for method in collected.methods_on(configuration):
        cell = cells.get((configuration.task.name, method.variant.name))
        if cell and _has_published_values(method) and method.id in values and method.id not in excluded:
            by_seed = list(scaled(values[method.id], 100).values())
            compared[method.id] = replace(compare(by_seed, cell, comparable), mean=mean[method.id])
    return compared


def _has_published_values(method: MethodRow) -> bool:
    name = method.variant.name
    return method.id == name and not method.tuned and method.variant == catalogue.variant(name)


def section(material: Material) -> Section | None:
    """Build the section: one table for each task that has published results.

    A note below the first table counts the verdicts of all tables. It is written separately for runs that follow the
    published code and for runs that follow the text of the paper.
    """
    by_configuration = {item.id: comparisons(material.collected, item) for item in material.collected.configurations}
    columns = [
        Column(id="published", title="Published, %"), Column(id="ours", title="Ours, %"),
        Column(id="difference", title="Difference, points"), Column(id="verdict", title="Verdict"),
    ]  # fmt: skip
    parts: list[Part] = []
    counted: dict[str, str] = {}
    for configuration in material.collected.configurations:
        rows = material.rows({method: _cells(item) for method, item in by_configuration[configuration.id].items()})
        if not rows:
            continue
        note = ""
        fidelity = configuration.fidelity
        if fidelity not in counted:
            ids = [item.id for item in material.collected.configurations if item.fidelity == fidelity]
            note = verdict_counts(fidelity, [item for id_ in ids for item in by_configuration[id_].values()])
            counted[fidelity] = note.split(". ")[0].rstrip(".") + "."
        caption = f"{configuration.title}: {material.captions['published']['latex']}"
        table = grid(f"published_{configuration.id}", columns, rows, caption)
        parts.append(Part(title=configuration.title, table=table, note=note))
    return Section(id="published", answer=" ".join(counted.values()), parts=tuple(parts)) if parts else None


def verdict_counts(fidelity: str, cells: list[Comparison]) -> str:
    """Return sentences that count the comparisons with each verdict, such as `agrees`.

    They also count the inconclusive cells whose published standard deviation is too large for agreement, however many
    seeds we have. Two more sentences show what the verdicts hide: how the number of cells that agree depends on the
    margin, and on which side of the published results ours lie.
    """
    counts = Counter(cell.verdict for cell in cells)
    text = ", ".join(f"{counts[name]} {name}" for name in ("agrees", "differs", "inconclusive") if cells)
    if counts["not comparable"]:
        text += f", {counts['not comparable']} not comparable"
    sentences = [f"Of {len(cells)} published cells in this report under {fidelity} fidelity: {text}."]
    open_cells = [cell for cell in cells if cell.verdict == "inconclusive"]
    if undecidable := sum(cell.published.undecidable for cell in open_cells):
        sentences.append(
            f"In {undecidable} of the inconclusive cells the published spread is too wide for agreement with any "
            "number of seeds."
        )
    comparable = [cell for cell in cells if cell.verdict != "not comparable"]
    return " ".join([*sentences, *_margins(comparable), *_sides(comparable)])


def _margins(cells: list[Comparison]) -> list[str]:
    """Return a sentence that counts how many cells would agree within other margins than EQUIVALENCE_POINTS."""
    reaches = [
        max(-cell.narrow.low, cell.narrow.high)
        for cell in cells
        if cell.narrow.low is not None and cell.narrow.high is not None
    ]
    if not reaches:
        return []
    curve = ", ".join(f"{sum(reach <= margin for reach in reaches)} within \u00b1{margin}" for margin in MARGINS)
    return [
        f"The margin of \u00b1{EQUIVALENCE_POINTS:g} points is a choice. Cells that agree with other margins: {curve}."
    ]


def _sides(cells: list[Comparison]) -> list[str]:
    """Return a sentence with a sign test over the cells: whether our results lie on one side of the published ones."""
    signs = [cell.difference.mean < 0 for cell in cells if cell.difference.mean]
    if len(signs) < MIN_SIGNS:
        return []
    p = float(binomtest(sum(signs), len(signs)).pvalue)
    text = f"p {number(p, 3)}" if p >= 0.001 else "p < 0.001"
    return [
        f"Our mean is the lower one in {sum(signs)} of {len(signs)} cells (sign test: {text}; cells of one task are "
        "not independent)."
    ]


def _cells(comparison: Comparison) -> dict[str, Cell]:
    cell = comparison.published
    note = "spread too wide for agreement" if cell.undecidable else ""
    text = f"{number(cell.mean, 1)} {PLUS_MINUS} {number(cell.deviation, 1)}"
    quiet = comparison.verdict in ("inconclusive", "not comparable")
    return {
        "published": Cell(text=text, note=note, order=cell.mean),
        "ours": interval_cell(comparison.mean, 1, usual=PUBLISHED_SEEDS),
        "difference": interval_cell(comparison.difference, 1, sign=True, usual=PUBLISHED_SEEDS),
        "verdict": Cell(text=comparison.verdict, quiet=quiet),
    }

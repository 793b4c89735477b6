"""Section with the main table: the result of every method on every task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import polars as pl

from floral.config.schema.data import Synthetic
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.description import has_one_partition, on_own_samples
from floral.report.sections.base import Cells, Material, Section, side_by_side
from floral.report.sections.provenance import several_executions
from floral.report.style import Style
from floral.report.summarise import (
    REFERENCE,
    Unit,
    best,
    differences,
    intervals,
    means,
    perplexities,
    result_unit,
    scaled,
    seed_counts,
    seed_note,
    usual_seeds,
)
from floral.report.tables import EMPTY, Cell, interval_cell, number

MIN_CLASSES_FOR_TOP5 = 20
"""With fewer classes, five of them are too large a share for a top-5 accuracy to be informative."""


def section(material: Material) -> Section:
    collected, styles = material.collected, material.styles

    def columns(configuration: Configuration, cells: Cells) -> dict[str, str]:
        unit = result_unit(configuration)
        reference = styles[REFERENCE].title if REFERENCE in styles else ""
        titles = {
            "value": unit.title,
            "top5": "Top-5, %",
            "perplexity": f"Perplexity per {configuration.task.per}",
            "official": f"Official score{', %' if configuration.metric == 'accuracy' else ''}",
            "difference": unit.minus(reference),
        }
        return {key: title for key, title in titles.items() if any(key in row for row in cells.values())}

    cells = {item.id: main_cells(collected, styles, item) for item in collected.configurations}
    parts = side_by_side(
        material, "main", collected.configurations, cells, columns, partial(several_executions, collected)
    )
    rows = [row["value"] for of_task in cells.values() for row in of_task.values()]
    bold = sum(cell.mark == "best" for cell in rows)
    answer = f"{bold} of {len(rows)} results are bold: they cannot be told from the best of their task."
    answer = answer if bold else "No result is bold: these seeds tell no methods apart, or runs are missing."
    return Section(id="main", answer=answer, parts=parts, note=measurement(collected, material.captions["main"]))


def measurement(collected: Collected, texts: Mapping[str, str]) -> str:
    """Return in words how results are measured. A text that holds for some tasks only begins with their titles."""
    sentences = []
    for key, configurations in measured_as(collected).items():
        everywhere = len(configurations) == len(collected.configurations)
        where = "" if everywhere else f"{'; '.join(configuration.title for configuration in configurations)}: "
        sentences += [where + texts[key]] if configurations else []
    return " ".join(sentences)


def measured_as(collected: Collected) -> dict[str, list[Configuration]]:
    """Return the configurations for which each text on the measurement holds, by its key in captions.yaml."""
    trained = [configuration for configuration in collected.configurations if not configuration.task.noop]
    on_own = [configuration for configuration in trained if on_own_samples(configuration)]
    population = [configuration for configuration in trained if configuration not in on_own]
    return {
        "population": population,
        "noise_free": [item for item in population if isinstance(item.task.data, Synthetic)],
        "own": on_own,
        "sampled": [item for item in on_own if item.rules["evaluation"] == "sampled"],
        "training": [item for item in trained if item.on_training],
        "one_partition": [item for item in trained if has_one_partition(collected, item)],
        "per_variant": [
            item for item in trained if item.rules["subset"] == "per_variant" and item.task.partition.share < 1
        ],
    }


def main_cells(
    collected: Collected, styles: Mapping[str, Style], configuration: Configuration
) -> dict[str, dict[str, Cell]]:
    """Return the cells of one task in the main table, as method → column → cell.

    Columns: `value` (mean result), `top5` (top-5 accuracy), `perplexity`, `official` (score measured as in the
    paper's published code), `difference` (to FLoRAL 1 %). If runs diverged, a cell states for how many seeds.
    """
    unit, counts = result_unit(configuration), seed_counts(collected, configuration)
    result, paired = intervals(collected, configuration), differences(collected, configuration)
    official = means(collected, configuration, "official_score", unit.scale)
    with_top5 = _number_of_classes(collected, configuration) >= MIN_CLASSES_FOR_TOP5
    top5 = means(collected, configuration, "test_top5_accuracy", unit.scale) if with_top5 else {}
    perplexity = perplexities(collected, configuration)
    usual = usual_seeds(collected)
    bold = best(collected, styles, configuration).marked
    cells: dict[str, dict[str, Cell]] = {}
    for method, count in counts.items():
        note = seed_note(count)
        if method not in result:
            cells[method] = {
                "value": _without_mean(collected.values(configuration, unit.column).get(method, {}), note, unit)
            }
            continue
        mark = "best" if method in bold else ""
        cells[method] = {"value": interval_cell(result[method], unit.digits, note=note, mark=mark, usual=usual)}
        if method in top5:
            cells[method]["top5"] = interval_cell(top5[method], unit.digits, usual=usual)
        if method in perplexity:
            cells[method]["perplexity"] = interval_cell(perplexity[method], 2, note=note, usual=usual)
        if method in official:
            cells[method]["official"] = interval_cell(official[method], unit.digits, note=note, usual=usual)
        if method in paired:
            cells[method]["difference"] = interval_cell(paired[method], unit.digits, sign=True, usual=usual)
        elif method == REFERENCE and len(result) > 1:
            cells[method]["difference"] = Cell(text="reference")
    return cells


def _number_of_classes(collected: Collected, configuration: Configuration) -> int:
    """Return the number of classes of a task's data, or 0 for regression.

    It is 0 also for runs of earlier versions, which do not store the number.
    """
    classes = collected.summary.filter(pl.col("configuration") == configuration.id)["classes"].max()
    return classes if isinstance(classes, int) else 0


def _without_mean(done: Mapping[int, float], note: str, unit: Unit) -> Cell:
    """Return the cell of a method that has no mean because some of its runs diverged.

    It shows the number of diverged seeds, and below it the values of the other seeds.
    """
    if not done:
        return Cell(text=EMPTY.text, note=note)
    values = ", ".join(number(value, unit.digits) for value in scaled(done, unit.scale).values())
    return Cell(text=note, note=f"no mean; done: {values}")

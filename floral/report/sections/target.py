"""Section on what each method spends until it reaches a target result, such as 95 % of FLoRAL's accuracy."""

from __future__ import annotations

import polars as pl

from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.sections.base import Cells, Material, Part, Section
from floral.report.sections.budgets import evaluations
from floral.report.summarise import REFERENCE, methods_without_mean, result_unit, seed_counts
from floral.report.tables import Cell, Column, amount, grid, number

TARGET_SHARE = 0.95
"""The target is this share of the reference's last accuracy, or its last loss divided by it."""
COSTS = {
    "round": "Rounds", "bytes": "Bytes, all clients", "client_passes": "Forward-backward passes, all clients",
    "seconds": "Seconds",
}  # fmt: skip


def section(material: Material) -> Section | None:
    """Build the section: one table for each task on which the reference method (FLoRAL 1 %) has results."""
    parts, cells = [], []
    for configuration in material.collected.configurations:
        if (goal := target(material.collected, configuration)) is not None:
            cells_of_task = target_cells(material.collected, configuration, goal)
            parts.append(_part(material, configuration, goal, cells_of_task))
            cells += [row["round"] for row in cells_of_task.values()]
    reached = sum(cell.order is not None for cell in cells)
    answer = f"The target is reached with all seeds in {reached} of {len(cells)} combinations of method and task."
    return Section(id="target", answer=answer, parts=tuple(parts), opened=False) if parts else None


def target(collected: Collected, configuration: Configuration) -> float | None:
    """Return the target: TARGET_SHARE times the last accuracy of FLoRAL 1 %, averaged over seeds.

    For regression, it is the last loss divided by TARGET_SHARE. Return None if FLoRAL 1 % has no results on this task,
    or if its diverged seeds leave it without a mean.
    """
    if REFERENCE in methods_without_mean(collected, configuration):
        return None
    rows = evaluations(collected, configuration)
    if rows.is_empty() or (reference := rows.filter(pl.col("method_id") == REFERENCE)).is_empty():
        return None
    last = float(reference.group_by("seed", maintain_order=True).last()["value"].mean())  # type: ignore[arg-type]
    return TARGET_SHARE * last if configuration.metric == "accuracy" else last / TARGET_SHARE


def target_cells(collected: Collected, configuration: Configuration, goal: float) -> dict[str, dict[str, Cell]]:
    """Return what each method spends until its result is as good as `goal`, as method → cost → cell.

    Costs are counted up to the first evaluation that reaches the goal, and averaged over seeds. If a seed does not
    reach the goal, the cell shows instead how many seeds reach it. Seconds count training only; all rounds of a run are
    assumed to take equally long.
    """
    keys = ["method_id", "seed"]
    excluded = methods_without_mean(collected, configuration)
    rows = evaluations(collected, configuration).filter(~pl.col("method_id").is_in(excluded))
    good = pl.col("value") >= goal if configuration.metric == "accuracy" else pl.col("value") <= goal
    first = rows.filter(good).group_by(keys, maintain_order=True).first()
    runs = collected.summary.filter(pl.col("configuration") == configuration.id)
    runs = runs.select(*keys, "seconds_train", last=pl.col("round"))
    first = first.join(runs, on=keys, how="left", maintain_order="left")
    share = pl.when(pl.col("last") > 0).then(pl.col("round") / pl.col("last")).otherwise(1.0)
    first = first.with_columns(seconds=pl.col("seconds_train") * share)
    cells: dict[str, dict[str, Cell]] = {}
    counts = seed_counts(collected, configuration)
    for (method,), _ in rows.group_by("method_id", maintain_order=True):
        successes, seeds = first.filter(pl.col("method_id") == method), counts[str(method)]["all"]
        if successes.height < seeds:
            note = f"{successes.height} of {seeds} seeds reach it" if successes.height else ""
            cells[str(method)] = {"round": Cell(text="not reached", note=note, quiet=True)}
        else:
            means = {cost: float(successes[cost].mean()) for cost in COSTS}  # type: ignore[arg-type]
            cells[str(method)] = {cost: Cell(text=amount(mean), order=mean) for cost, mean in means.items()}
    return cells


def _part(material: Material, configuration: Configuration, goal: float, cells: Cells) -> Part:
    unit = result_unit(configuration)
    columns = [Column(id=cost, title=title, spanner="Until the target") for cost, title in COSTS.items()]
    title = f"{configuration.title}, {unit.title}: {number(unit.scale * goal, unit.digits)}"
    caption = f"{title}: {material.captions['target']['latex']}"
    table = grid(f"target_{configuration.id}", columns, material.rows(cells), caption)
    return Part(title=title, table=table)

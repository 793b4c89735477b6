"""The report's section on what it takes to reach a target that is declared before anybody is looked at."""

from __future__ import annotations

import polars as pl

from floral.report.collect import Collected, Configuration
from floral.report.sections.base import Material, Part, Section
from floral.report.sections.budgets import evaluations
from floral.report.summarise import REFERENCE, lost, unit, without_mean
from floral.report.tables import Cell, Column, amount, grid, number

SHARE = 0.95
"""Of the reference's last value that is the target; of a loss, the last value divided by it."""
SPENT = {
    "round": "Rounds", "bytes": "Bytes, all clients", "client_passes": "Passes, all clients", "seconds": "Seconds",
}  # fmt: skip


def section(material: Material) -> Section | None:
    """A table for each setting in which the reference has a mean."""
    parts = []
    for configuration in material.collected.configurations:
        if (aim := target(material.collected, configuration)) is not None:
            parts.append(_part(material, configuration, aim))
    return Section(id="target", parts=tuple(parts), opened=False) if parts else None


def target(collected: Collected, configuration: Configuration) -> float | None:
    """SHARE of the mean over seeds of the reference's last evaluation; None where it has no mean."""
    if REFERENCE in without_mean(collected, configuration):
        return None
    rows = evaluations(collected, configuration)
    if rows.is_empty() or (own := rows.filter(pl.col("contender") == REFERENCE)).is_empty():
        return None
    last = float(own.group_by("seed", maintain_order=True).last()["value"].mean())  # type: ignore[arg-type]
    return SHARE * last if configuration.metric == "accuracy" else last / SHARE


def target_cells(collected: Collected, configuration: Configuration, aim: float) -> dict[str, dict[str, Cell]]:
    """contender → rounds, bytes, passes and seconds at the first evaluation that is as good as `aim`, mean over seeds.

    A mean takes all of a contender's seeds: where one does not reach the target, how many do is told instead. Seconds
    are those of training, taken as evenly spread over the run's rounds.
    """
    keys = ["contender", "seed"]
    rows = evaluations(collected, configuration).filter(
        ~pl.col("contender").is_in(without_mean(collected, configuration))
    )
    good = pl.col("value") >= aim if configuration.metric == "accuracy" else pl.col("value") <= aim
    first = rows.filter(good).group_by(keys, maintain_order=True).first()
    ran = collected.summary.filter(pl.col("setting") == configuration.id)
    ran = ran.select(*keys, "seconds_train", last=pl.col("round"))
    first = first.join(ran, on=keys, how="left", maintain_order="left")
    share = pl.when(pl.col("last") > 0).then(pl.col("round") / pl.col("last")).otherwise(1.0)
    first = first.with_columns(seconds=pl.col("seconds_train") * share)
    cells: dict[str, dict[str, Cell]] = {}
    asked = lost(collected, configuration)
    for (name,), _ in rows.group_by("contender", maintain_order=True):
        reached, seeds = first.filter(pl.col("contender") == name), asked[str(name)]["all"]
        if reached.height < seeds:
            note = f"{reached.height} of {seeds} seeds reach it" if reached.height else ""
            cells[str(name)] = {"round": Cell(text="not reached", note=note, quiet=True)}
        else:
            means = {key: float(reached[key].mean()) for key in SPENT}  # type: ignore[arg-type]
            cells[str(name)] = {key: Cell(text=amount(mean), order=mean) for key, mean in means.items()}
    return cells


def _part(material: Material, configuration: Configuration, aim: float) -> Part:
    shown, cells = unit(material.collected, configuration), target_cells(material.collected, configuration, aim)
    columns = [Column(id=key, title=title, spanner="Until the target") for key, title in SPENT.items()]
    rows = material.rows(cells)
    told = f"{shown.title}: {number(shown.scale * aim, shown.digits)}"
    caption = f"{configuration.title}, {told}: {material.captions['target']['latex']}"
    return Part(
        title=f"{configuration.title}, {told}", table=grid(f"target_{configuration.id}", columns, rows, caption)
    )

"""The report's section on clients that join after training: a table and a sentence for each setting that has any."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from floral.core.intervals import interval
from floral.report.collect import Collected, Configuration
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import JOINING, joined, usual_seeds
from floral.report.tables import Cell, Column, Table, grid, interval_cell, number

NO_CLUSTER = Cell(text="n/a")
"""An oracle for a client of a concept that no cluster has."""
SPANNERS = {"seen_cluster": "Seen cluster", "new_concept": "New concept"}


def section(material: Material) -> Section | None:
    """A row of figures and a table for each setting in which clients joined a run that is done."""
    collected, styles, caption = material.collected, material.styles, material.captions["unseen"]["latex"]
    parts = []
    for configuration in collected.configurations:
        frames = {kind: joined(collected, configuration, kind) for kind in JOINING}
        if any(not frame.is_empty() for frame in frames.values()):
            table = _table(collected, styles, configuration, frames, f"{configuration.title}: {caption}")
            parts.append(Part(title=configuration.title, note=said(frames, styles, configuration), table=table))
    if not parts:
        return None
    figures = material.drawn(*(f"unseen_{kind}" for kind in JOINING))
    return Section(id="unseen", figures=(figures,), parts=tuple(parts), opened=False)


def said(frames: Mapping[str, pl.DataFrame], styles: Mapping[str, Style], configuration: Configuration) -> str:
    """How the clients joined, and which method serves each kind best with one sample and with all."""
    rule = configuration.task.unseen
    assert rule is not None, "its runs have unseen clients"
    counts = f"{rule.seen_cluster} clients of seen clusters and {rule.new_concept} of new concepts"
    sentences = [f"{counts} in each seed; {rule.epochs} local epochs on what is a client's own."]
    for kind, frame in frames.items():
        rivals = frame.filter(
            pl.col("contender").is_in([style.id for style in styles.values() if style.group == "method"])
        )
        some = sorted(n for n in rivals["x"].unique() if n > 0) if not rivals.is_empty() else []
        best = [_best(rivals, styles, n) for n in dict.fromkeys([some[0], some[-1]])] if some else []
        if best:
            sentences.append(f"{SPANNERS[kind]}, highest mean: {'; '.join(best)}.")
    return " ".join(sentences)


def _best(rivals: pl.DataFrame, styles: Mapping[str, Style], n: float) -> str:
    first = rivals.filter(pl.col("x") == n).sort("mean", descending=True, maintain_order=True).row(0, named=True)
    plural = "" if n == 1 else "s"
    return f"with {n:g} sample{plural} {styles[first['contender']].title} ({number(first['mean'], 1)} %)"


def _table(
    collected: Collected,
    styles: Mapping[str, Style],
    configuration: Configuration,
    frames: Mapping[str, pl.DataFrame],
    caption: str,
) -> Table:
    cells: dict[str, dict[str, Cell]] = {}
    columns, usual = [], usual_seeds(collected)
    shown = {method.id for method in collected.present(configuration)}
    for kind, frame in frames.items():
        if frame.is_empty():
            continue
        sizes = frame["x"].unique().sort().to_list()
        columns += [Column(id=f"{kind}.{n:g}", title=f"{n:g}", spanner=f"{SPANNERS[kind]}, samples") for n in sizes]
        for row in frame.iter_rows(named=True):
            mean = interval(row["seeds"])
            cells.setdefault(row["contender"], {})[f"{kind}.{row['x']:g}"] = interval_cell(mean, 1, usual=usual)
        if kind == "new_concept":
            for name in (style.id for style in styles.values() if style.dashed and style.id in cells):
                cells[name] |= {f"{kind}.{n:g}": NO_CLUSTER for n in sizes}
    rows = [(style, cells.get(name, {})) for name, style in styles.items() if name in shown]
    return grid(f"unseen_{configuration.id}", columns, rows, caption)

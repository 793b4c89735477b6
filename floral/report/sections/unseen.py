"""Section on clients that join after training: figures, and one table with a note for each task."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from floral.core.intervals import t_interval
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.frames import UNSEEN_KINDS, unseen_accuracy
from floral.report.sections.base import Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import usual_seeds
from floral.report.tables import Cell, Column, Table, grid, interval_cell, number

NO_CLUSTER = Cell(text="n/a")
"""An oracle's cell for clients of a new concept: they belong to no true cluster that it could be told."""
SPANNERS = {"seen_cluster": "Seen cluster", "new_concept": "New concept"}


def section(material: Material) -> Section | None:
    """Build the section: figures, and one table for each task in which clients join after training."""
    collected, styles, caption = material.collected, material.styles, material.captions["unseen"]["latex"]
    parts = []
    for configuration in collected.configurations:
        frames = {kind: unseen_accuracy(collected, configuration, kind) for kind in UNSEEN_KINDS}
        if any(not frame.is_empty() for frame in frames.values()):
            table = _table(collected, styles, configuration, frames, f"{configuration.title}: {caption}")
            parts.append(Part(title=configuration.title, note=_note(frames, styles, configuration), table=table))
    if not parts:
        return None
    figures = material.figures_of(*(f"unseen_{kind}" for kind in UNSEEN_KINDS))
    return Section(id="unseen", figures=(figures,), parts=tuple(parts), opened=False)


def _note(frames: Mapping[str, pl.DataFrame], styles: Mapping[str, Style], configuration: Configuration) -> str:
    """Return a note on how clients joined after training, and on the methods that are best for them.

    Some of these clients belong to a cluster seen in training, others have a new concept. For both kinds, the note
    names two methods: the best one with few labelled samples, and the best one with many.
    """
    rule = configuration.task.unseen
    assert rule is not None, "its runs have unseen clients"
    counts = f"{rule.seen_cluster} clients of seen clusters and {rule.new_concept} of new concepts"
    sentences = [f"In each seed, {counts} join. Each trains its private parameters for {rule.epochs} local epochs."]
    methods = [style.id for style in styles.values() if style.group == "method"]
    for kind, frame in frames.items():
        of_methods = frame if frame.is_empty() else frame.filter(pl.col("method_id").is_in(methods))
        sizes = sorted(n for n in of_methods["x"].unique() if n > 0) if not of_methods.is_empty() else []
        best = [_best(of_methods, styles, n) for n in dict.fromkeys([sizes[0], sizes[-1]])] if sizes else []
        if best:
            sentences.append(f"{SPANNERS[kind]}, highest mean: {'; '.join(best)}.")
    return " ".join(sentences)


def _best(frame: pl.DataFrame, styles: Mapping[str, Style], n: float) -> str:
    first = frame.filter(pl.col("x") == n).sort("mean", descending=True, maintain_order=True).row(0, named=True)
    plural = "" if n == 1 else "s"
    return f"with {n:g} sample{plural} {styles[first['method_id']].title} ({number(first['mean'], 1)} %)"


def _table(
    collected: Collected, styles: Mapping[str, Style], configuration: Configuration,
    frames: Mapping[str, pl.DataFrame], caption: str,
) -> Table:  # fmt: skip
    cells: dict[str, dict[str, Cell]] = {}
    columns, usual = [], usual_seeds(collected)
    for kind, frame in frames.items():
        if frame.is_empty():
            continue
        sizes = frame["x"].unique().sort().to_list()
        columns += [Column(id=f"{kind}.{n:g}", title=f"{n:g}", spanner=f"{SPANNERS[kind]}, samples") for n in sizes]
        for row in frame.iter_rows(named=True):
            cell = interval_cell(t_interval(row["seeds"]), 1, usual=usual)
            cells.setdefault(row["method_id"], {})[f"{kind}.{row['x']:g}"] = cell
        if kind == "new_concept":
            for method in (style.id for style in styles.values() if style.dashed and style.id in cells):
                cells[method] |= {f"{kind}.{n:g}": NO_CLUSTER for n in sizes}
    methods = {method.id for method in collected.methods_on(configuration)}
    rows = [(style, cells.get(method, {})) for method, style in styles.items() if method in methods]
    return grid(f"unseen_{configuration.id}", columns, rows, caption)

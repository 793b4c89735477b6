"""The report's sections, in its order: a new one is a function that makes it, and its caption in captions.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import polars as pl

from floral.core.units import BYTES_PER_FLOAT
from floral.report.collect import Collected, Configuration
from floral.report.draw import RECOVERY
from floral.report.sections import (
    budgets,
    clusters,
    corrections,
    decided,
    published,
    rank,
    server_sees,
    setup,
    target,
    tuning,
    unseen,
)
from floral.report.sections.base import Make, Material, Part, Section
from floral.report.style import Style
from floral.report.summarise import REFERENCE, main_cells, unit, usual_seeds, worst, worst_cell
from floral.report.tables import EMPTY, Cell, Column, amount, grid

ACROSS = 4
"""Settings side by side in one table; more make a second table."""

WORST: dict[Literal["cluster", "decile"], str] = {"cluster": "Worst cluster, %", "decile": "Worst decile, %"}
COSTS = {
    "trainable_per_client": ("trained", "Parameters"), "served": ("served", "Parameters"),
    "kept_private": ("kept", "Parameters"),
    "sent_down": ("down", "Bytes per client and round"), "sent_up": ("up", "Bytes per client and round"),
    "bytes": ("in all", "Bytes, all clients"),
    "held": ("model and gradients", "Memory per client, bytes"),
    "passes_per_sample": ("per sample", "Passes"), "client_passes": ("in all", "Passes"),
    "seconds": ("seconds", "Per run, measured"), "memory": ("peak bytes", "Per run, measured"),
}  # fmt: skip


def main(material: Material) -> Section | None:
    collected, shown = material.collected, material.styles

    def columns(configuration: Configuration, cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, str]:
        measured = unit(collected, configuration)
        reference = shown[REFERENCE].title if REFERENCE in shown else ""
        titles = {
            "value": measured.title,
            "top5": "Top-5, %",
            "perplexity": f"Perplexity per {configuration.task.per}",
            "official": f"Official score{', %' if configuration.metric == 'accuracy' else ''}",
            "difference": f"\u2212 {reference}, {measured.difference}",
        }
        return {key: title for key, title in titles.items() if any(key in row for row in cells.values())}

    found = {
        configuration.id: main_cells(collected, shown, configuration) for configuration in collected.configurations
    }
    return Section(id="main", parts=_parts(material, "main", collected.configurations, found, columns))


def result(material: Material) -> Section | None:
    section, left = _drawn(material, "result"), len(material.collected.configurations) - len(material.figures)
    said = f"Settings without figures, because they turn a switch of one that is drawn: {left}. The tables have them."
    return replace(section, note=said) if section and left else section


def curves(material: Material) -> Section | None:
    """A row of three for each setting."""
    kinds = ("rounds", "bytes", "passes")
    rows = [tuple(drawn[kind] for kind in kinds if kind in drawn) for drawn in material.figures.values()]
    rows = [row for row in rows if row]
    return Section(id="curves", figures=tuple(rows), layout="grid thirds") if rows else None


def routes(material: Material) -> Section | None:
    return _drawn(material, "routes", "routes", "followed", *RECOVERY)


def spread(material: Material) -> Section | None:
    return _drawn(material, "spread")


def worst_clients(material: Material) -> Section | None:
    collected = material.collected
    cells: dict[str, dict[str, dict[str, Cell]]] = {}
    for configuration in collected.configurations:
        if configuration.metric == "accuracy":
            for which in WORST:
                for one in worst(collected, configuration, which):
                    cells.setdefault(configuration.id, {}).setdefault(one.method, {})[which] = worst_cell(
                        one, usual_seeds(collected)
                    )
    configurations = tuple(configuration for configuration in collected.configurations if configuration.id in cells)
    parts = _parts(
        material, "worst", configurations, cells, lambda *_: {str(which): title for which, title in WORST.items()}
    )
    if not parts:
        return None
    return Section(id="worst", figures=(material.drawn("worst_cluster", "worst_decile"),), parts=parts, opened=False)


def costs(material: Material) -> Section | None:
    parts = []
    for configuration in material.collected.configurations:
        cells = cost_cells(material.collected, configuration)
        columns = [Column(id=key, title=title, spanner=spanner) for key, (title, spanner) in COSTS.items()]
        rows = material.rows(cells)
        if rows:
            caption = f"{configuration.title}: {material.captions['costs']['latex']}"
            parts.append(
                Part(title=configuration.title, table=grid(f"costs_{configuration.id}", columns, rows, caption))
            )
    return Section(id="costs", parts=tuple(parts)) if parts else None


def methods(material: Material) -> Section | None:
    return Section(id="methods")


def failures(material: Material) -> Section | None:
    lost = {"diverged", "failed", "missing"} & set(material.collected.summary["status"])
    return Section(id="failures") if lost else None


def provenance(material: Material) -> Section | None:
    return Section(id="provenance")


SECTIONS: tuple[Make, ...] = (
    main, decided.section, published.section, published.claims, corrections.section,
    rank.section, budgets.section, result, curves, routes, spread, worst_clients, clusters.section,
    unseen.section, costs, target.section, server_sees.section, tuning.section, methods, failures,
    setup.section, provenance,
)  # fmt: skip


# --------------------------------------------------------------------------------------------- parts of them


def _drawn(material: Material, id_: str, *kinds: str) -> Section | None:
    """A section of nothing but figures, of the kind that it is named after unless it names others."""
    figures = material.drawn(*(kinds or (id_,)))
    return Section(id=id_, figures=(figures,)) if figures else None


def _parts(
    material: Material, name: str, configurations: tuple[Configuration, ...],
    cells: Mapping[str, Mapping[str, Mapping[str, Cell]]],
    columns: Callable[[Configuration, Mapping[str, Mapping[str, Cell]]], dict[str, str]],
) -> tuple[Part, ...]:  # fmt: skip
    """Tables of ACROSS settings each, spanner by spanner; `cells`: setting → contender → column → cell."""
    parts = []
    for at in range(0, len(configurations), ACROSS):
        group = configurations[at : at + ACROSS]
        heads = [
            Column(id=f"{configuration.id}.{key}", title=title, spanner=configuration.title)
            for configuration in group
            for key, title in columns(configuration, cells[configuration.id]).items()
        ]
        rows: list[tuple[Style, dict[str, Cell]]] = []
        for id_, style in material.styles.items():
            own = {
                f"{configuration.id}.{key}": cell
                for configuration in group
                for key, cell in cells[configuration.id].get(id_, {}).items()
            }
            if own:
                rows.append((style, own))
        if rows:
            label = name if len(configurations) <= ACROSS else f"{name}_{at // ACROSS + 1}"
            title = ", ".join(configuration.title for configuration in group)
            parts.append(Part(title=title, table=grid(label, heads, rows, material.captions[name]["latex"])))
    return tuple(parts)


def cost_cells(collected: Collected, configuration: Configuration) -> dict[str, dict[str, Cell]]:
    """contender → cost → cell; seconds and memory are means over the seeds that are done, not the diverged ones."""
    if collected.costs.is_empty():
        return {}
    costs = collected.costs.filter(pl.col("setting") == configuration.id)
    total = collected.summary.filter(pl.col("setting") == configuration.id)
    cells: dict[str, dict[str, Cell]] = {}
    for (name,), rows in costs.group_by("contender", maintain_order=True):
        first, done = rows.row(0, named=True), rows.filter(pl.col("status") == "done")
        spent = total.filter(pl.col("contender") == name)
        counted = first["parameters"]
        values = {
            **counted, "sent_down": BYTES_PER_FLOAT * counted["sent_down"],
            "sent_up": BYTES_PER_FLOAT * counted["sent_up"], "held": BYTES_PER_FLOAT * client_floats(counted),
            "bytes": spent["bytes"].max(),
            "passes_per_sample": first["passes_per_sample"], "client_passes": spent["client_passes"].mean(),
            "seconds": done["seconds"].struct.field("total").mean(), "memory": done["peak_memory_bytes"].mean(),
        }  # fmt: skip
        cells[str(name)] = {
            key: EMPTY if value is None else Cell(text=amount(float(value)), order=float(value))
            for key, value in values.items()
        }
    return cells


def client_floats(counted: Mapping[str, int]) -> int:
    """Floats that one client holds while it trains: all that it is sent, serves or keeps, and a gradient for each that
    it trains. 0 where clients neither get nor keep anything, as in pooled training."""
    if counted["sent_down"] + counted["kept_private"] == 0:
        return 0
    parameters = max(counted["served"], counted["sent_down"] + counted["kept_private"])
    return parameters + counted["trainable_per_client"]

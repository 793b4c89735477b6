"""Section with the costs of one run: parameters, bytes, memory, forward-backward passes and seconds."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from floral.config.schema.method import Variant
from floral.config.schema.task import Task
from floral.core.units import BYTES_PER_FLOAT
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.sections.base import Material, Part, Section
from floral.report.tables import EMPTY, Cell, Column, amount, grid, number

COLUMNS = {
    "trainable_per_client": ("trained", "Parameters"), "served": ("served", "Parameters"),
    "kept_private": ("private", "Parameters"), "adaptors": ("FLoRAL's adaptors, % of base", "Parameters"),
    "sent_down": ("down", "Bytes per client and round"), "sent_up": ("up", "Bytes per client and round"),
    "bytes": ("in all", "Bytes, all clients"),
    "held": ("model and gradients", "Memory per client, bytes"),
    "passes_per_sample": ("per sample", "Forward-backward passes"),
    "client_passes": ("in all", "Forward-backward passes"),
    "seconds": ("seconds", "Per run, measured"), "memory": ("peak bytes", "Per run, measured"),
}  # fmt: skip
"""column → its title and its spanner"""
ROUNDED_UP = 2
"""An adaptor that is more than so many times as large as its rank says has ranks that were rounded up to 1."""


def section(material: Material) -> Section | None:
    parts = []
    for configuration in material.collected.configurations:
        cells = cost_cells(material.collected, configuration)
        columns = [Column(id=key, title=title, spanner=spanner) for key, (title, spanner) in COLUMNS.items()]
        rows = material.rows(cells)
        if rows:
            caption = f"{configuration.title}: {material.captions['costs']['latex']}"
            table = grid(f"costs_{configuration.id}", columns, rows, caption)
            parts.append(Part(title=configuration.title, table=table))
    return Section(id="costs", parts=tuple(parts)) if parts else None


def cost_cells(collected: Collected, configuration: Configuration) -> dict[str, dict[str, Cell]]:
    """Return the cells of one task's table as method → cost → cell. Seconds and memory are means over runs."""
    if collected.costs.is_empty():
        return {}
    costs = collected.costs.filter(pl.col("configuration") == configuration.id)
    summary = collected.summary.filter(pl.col("configuration") == configuration.id)
    variants = {method.id: method.variant for method in collected.methods}
    cells: dict[str, dict[str, Cell]] = {}
    for (method,), rows in costs.group_by("method_id", maintain_order=True):
        first, done = rows.row(0, named=True), rows.filter(pl.col("status") == "done")
        runs = summary.filter(pl.col("method_id") == method)
        parameters = first["parameters"]
        values = {
            **parameters, "sent_down": BYTES_PER_FLOAT * parameters["sent_down"],
            "sent_up": BYTES_PER_FLOAT * parameters["sent_up"], "held": BYTES_PER_FLOAT * client_floats(parameters),
            "bytes": runs["bytes"].max(),
            "passes_per_sample": first["passes_per_sample"], "client_passes": runs["client_passes"].mean(),
            "seconds": done["seconds"].struct.field("total").mean(), "memory": done["peak_memory_bytes"].mean(),
        }  # fmt: skip
        cells[str(method)] = {
            key: EMPTY if value is None else Cell(text=amount(float(value)), order=float(value))
            for key, value in values.items()
        }
        cells[str(method)]["adaptors"] = _adaptor_cell(variants[str(method)], configuration.task, parameters)
    return cells


def _adaptor_cell(variant: Variant, task: Task, parameters: Mapping[str, int]) -> Cell:
    """Return how large the adaptors that FLoRAL's clients share are in all, and one of them, in per cent of the base.

    A rank of 1 % is rounded up to 1 in small layers, so adaptors can be much larger than the method's title says. The
    note then says so. The cell of other methods is empty.
    """
    floats = parameters["server"] - parameters["base"]
    if variant.method != "floral" or floats <= 0:
        return EMPTY
    share, count = 100 * floats / parameters["base"], variant.params["multiplier"] * task.assumed
    notes = [f"{number(share / count, None)} each"] if count > 1 else []
    rank = variant.params["rank"]
    if isinstance(rank, float) and rank < 1 and share / count > ROUNDED_UP * 100 * rank:
        notes.append("each rank is at least 1")
    return Cell(text=number(share, None), note="; ".join(notes), order=share)


def client_floats(parameters: Mapping[str, int]) -> int:
    """Return the number of floats that one client holds in memory during training, as a lower bound.

    It counts the parameters that the client receives, stores privately or uses for predictions (each once), and one
    gradient per trained parameter. It is 0 in pooled training, where clients hold no parameters.
    """
    if parameters["sent_down"] + parameters["kept_private"] == 0:
        return 0
    held = max(parameters["served"], parameters["sent_down"] + parameters["kept_private"])
    return held + parameters["trainable_per_client"]

"""Section on privacy: what the server sees of single clients, and what the clients' routes reveal."""

from __future__ import annotations

import polars as pl

from floral.report.collect import Collected
from floral.report.compared import Configuration, MethodRow
from floral.report.sections.base import Material, Part, Section
from floral.report.tables import EMPTY, Cell, Column, grid, number


def section(material: Material) -> Section:
    """Build the section, which has one table for all tasks."""
    collected = material.collected
    methods = {method.id: method for method in collected.methods}
    leaks = {configuration.id: leakage(collected, configuration) for configuration in collected.configurations}
    columns = [Column(id="sees", title="Server sees"), Column(id="sums", title="Secure aggregation")]
    columns += [
        Column(id=configuration.id, title=configuration.title, spanner="Leakage: ARI of the routes sent to the server")
        for configuration in collected.configurations
        if leaks[configuration.id]
    ]
    rows = [
        (
            style,
            {
                **_declared_cells(methods[method]),
                **{id_: _leak_cell(values[method]) for id_, values in leaks.items() if method in values},
            },
        )
        for method, style in material.styles.items()
    ]
    table = grid("seen", columns, rows, material.captions["seen"]["latex"])
    secure = sum(method.variant.secure_aggregation for method in methods.values())
    answer = f"{secure} of {len(methods)} methods work with secure aggregation."
    return Section(id="seen", answer=answer, parts=(Part(title="", table=table),))


def leakage(collected: Collected, configuration: Configuration) -> dict[str, float]:
    """Return how well the routes sent to the server reveal the true clusters: method → adjusted Rand index.

    A route has a client's weights of the learned clusters. The index is a mean over seeds. Methods that send no routes
    are left out, and so are oracles, which know the true clusters anyway.
    """
    rows = collected.summary.filter(
        (pl.col("configuration") == configuration.id) & (pl.col("status") == "done") & pl.col("ari").is_not_null()
    )
    means = dict(rows.group_by("method_id", maintain_order=True).agg(pl.col("ari").mean()).iter_rows())
    sending = {
        method.id
        for method in collected.methods_on(configuration)
        if "routes" in method.variant.server_sees and not method.variant.oracle
    }
    return {method: value for method, value in means.items() if method in sending}


def _declared_cells(method: MethodRow) -> dict[str, Cell]:
    variant = method.variant
    sums = "yes" if variant.secure_aggregation else "no"
    return {
        "sees": Cell(text=", ".join(variant.server_sees)) if variant.server_sees else Cell(text="nothing"),
        "sums": Cell(text=sums) if variant.server_sees else EMPTY,
    }


def _leak_cell(value: float) -> Cell:
    return Cell(text=number(value, 2), order=value)

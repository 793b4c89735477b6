"""What the server gets to know of single clients, as declared, and what the routes that it is told give away."""

from __future__ import annotations

import polars as pl

from floral.report.collect import Collected, Configuration, MethodRow
from floral.report.sections.base import Material, Part, Section
from floral.report.tables import EMPTY, Cell, Column, grid, number


def section(material: Material) -> Section | None:
    """One table over all settings."""
    collected = material.collected
    methods = {one.id: one for one in collected.methods}
    leaks = {configuration.id: leakage(collected, configuration) for configuration in collected.configurations}
    columns = [Column(id="sees", title="Server sees"), Column(id="sums", title="Secure aggregation")]
    columns += [
        Column(id=configuration.id, title=configuration.title, spanner="Leakage: ARI of what it is told of routes")
        for configuration in collected.configurations
        if leaks[configuration.id]
    ]
    rows = [
        (
            style,
            {
                **_declared(methods[name]),
                **{id_: _leak(found[name]) for id_, found in leaks.items() if name in found},
            },
        )
        for name, style in material.styles.items()
    ]
    table = grid("seen", columns, rows, material.captions["seen"]["latex"])
    return Section(id="seen", parts=(Part(title="", table=table),))


def leakage(collected: Collected, configuration: Configuration) -> dict[str, float]:
    """contender → mean ARI, over the seeds that are done, of the routes that the server is told.

    Methods that tell it none leak none; those that were told the true clusters themselves have nothing to leak.
    """
    rows = collected.summary.filter(
        (pl.col("setting") == configuration.id) & (pl.col("status") == "done") & pl.col("ari").is_not_null()
    )
    means = dict(rows.group_by("contender", maintain_order=True).agg(pl.col("ari").mean()).iter_rows())
    told = {
        one.id
        for one in collected.present(configuration)
        if "routes" in one.variant.server_sees and not one.variant.oracle
    }
    return {name: value for name, value in means.items() if name in told}


def _declared(method: MethodRow) -> dict[str, Cell]:
    variant = method.variant
    sums = "yes" if variant.secure_aggregation else "no"
    return {
        "sees": Cell(text=", ".join(variant.server_sees)) if variant.server_sees else Cell(text="nothing"),
        "sums": Cell(text=sums) if variant.server_sees else EMPTY,
    }


def _leak(value: float) -> Cell:
    return Cell(text=number(value, 2), order=value)

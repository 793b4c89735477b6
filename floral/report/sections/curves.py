"""Section with learning curves."""

from __future__ import annotations

from floral.report.sections.base import Material, Section

KINDS = ("rounds", "bytes", "passes")


def section(material: Material) -> Section | None:
    """Build the section: one row of figures for each task with its settings."""
    rows = [tuple(figures[kind] for kind in KINDS if kind in figures) for figures in material.figures.values()]
    rows = [row for row in rows if row]
    return Section(id="curves", figures=tuple(rows), layout="grid thirds") if rows else None

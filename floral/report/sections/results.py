"""Section with one figure for each configuration, which shows the results of all methods."""

from __future__ import annotations

from dataclasses import replace

from floral.report.sections.base import Material, Section, figures_section


def section(material: Material) -> Section | None:
    figures = figures_section(material, "result", "result")
    without = len(material.collected.configurations) - len(material.figures)
    note = (
        f"Configurations shown only in tables, because they change switches of a configuration with figures: {without}."
    )
    return replace(figures, note=note) if figures and without else figures

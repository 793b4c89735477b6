"""Section with a figure of all results for each configuration."""

from __future__ import annotations

from dataclasses import replace

from floral.report.sections.base import Material, Section, figures_section


def section(material: Material) -> Section | None:
    made = figures_section(material, "result", "result")
    without = len(material.collected.configurations) - len(material.figures)
    note = (
        f"Configurations shown only in tables, because they change switches of a configuration with figures: {without}."
    )
    return replace(made, note=note) if made and without else made

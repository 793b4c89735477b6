"""Section with the spread of results over clients."""

from __future__ import annotations

from floral.report.sections.base import Material, Section, figures_section


def section(material: Material) -> Section | None:
    return figures_section(material, "spread", "spread")

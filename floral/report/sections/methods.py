"""Section that describes each method. The section's template writes the list of methods."""

from __future__ import annotations

from floral.report.sections.base import Material, Section


def section(material: Material) -> Section:
    return Section(id="methods")

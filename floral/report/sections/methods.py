"""Section that describes each method. Its template lists the methods."""

from __future__ import annotations

from floral.report.sections.base import Material, Section


def section(material: Material) -> Section:
    return Section(id="methods")

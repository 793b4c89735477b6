"""Section with figures of the clients' routes (their weights of the learned clusters)."""

from __future__ import annotations

from floral.report.figures.routes import RECOVERY
from floral.report.sections.base import Material, Section, figures_section


def section(material: Material) -> Section | None:
    return figures_section(material, "routes", "routes", "followed", *RECOVERY)

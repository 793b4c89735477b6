"""Section with figures of the clients' routes (their weights of the learned clusters)."""

from __future__ import annotations

from dataclasses import replace

from floral.report import sentences
from floral.report.figures.routes import RECOVERY
from floral.report.sections.base import Material, Section, figures_section


def section(material: Material) -> Section | None:
    section = figures_section(material, "routes", "routes", "followed", *RECOVERY)
    return section and replace(section, answer=sentences.recovery(material.collected, material.styles))

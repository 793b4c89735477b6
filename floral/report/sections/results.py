"""Section with the results of all methods, in one figure for each task."""

from __future__ import annotations

from dataclasses import replace

from floral.report import sentences
from floral.report.sections.base import Material, Section, figures_section


def section(material: Material) -> Section | None:
    figures = figures_section(material, "result", "result")
    without = len(material.collected.configurations) - len(material.figures)
    note = (
        f"Configurations without figures: {without}. They only change fidelity switches of a configuration with "
        "figures; their results are in the tables."
    )
    answer = f"Highest means: {sentences.leaders(material.collected, material.styles)}."
    return figures and replace(figures, answer=answer, note=note if without else "")

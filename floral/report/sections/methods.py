"""Section that describes each method. The section's template writes the list of methods."""

from __future__ import annotations

from floral.report.sections.base import Material, Section
from floral.report.sentences import count


def section(material: Material) -> Section:
    styles = material.styles.values()
    families = {style.family for style in styles}
    return Section(id="methods", answer=f"{count(len(styles), 'method')} of {len(families)} families, with sources.")

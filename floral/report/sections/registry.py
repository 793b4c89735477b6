"""The report's sections, in the order in which the page shows them.

To add a section, write a module with a function `section`, list this function here, and add the section's texts to
captions.yaml.
"""

from __future__ import annotations

from floral.report.sections import (
    adaptor_rank,
    budgets,
    claims,
    clusters,
    corrections,
    costs,
    curves,
    decided,
    failures,
    main_table,
    methods,
    provenance,
    published,
    results,
    routes,
    server_sees,
    setup,
    spread,
    target,
    tuning,
    unseen,
    worst,
)
from floral.report.sections.base import Make

SECTIONS: tuple[Make, ...] = (
    main_table.section, decided.section, published.section, claims.section, corrections.section,
    adaptor_rank.section, budgets.section, results.section, curves.section, routes.section, spread.section,
    worst.section, clusters.section, unseen.section, costs.section, target.section, server_sees.section,
    tuning.section, methods.section, failures.section, setup.section, provenance.section,
)  # fmt: skip

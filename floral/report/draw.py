"""Draw all figures of one configuration."""

from __future__ import annotations

from collections.abc import Mapping

from floral.report.charts.render import Figure
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.figures import clients, results, routes
from floral.report.frames import UNSEEN_KINDS
from floral.report.style import Style


def has_figures(collected: Collected, configuration: Configuration) -> bool:
    """Return whether the report draws figures of this configuration. Without figures, it is shown only in tables.

    Fidelity switches are settings that follow either the published code or the paper. A configuration has no figures if
    the suite changes some of its switches, and also runs the same task and fidelity without such changes. A suite can
    have dozens of such configurations.
    """
    same = [
        item
        for item in collected.configurations
        if item.task == configuration.task and item.fidelity == configuration.fidelity
    ]
    return not configuration.switches or all(item.switches for item in same)


def draw(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> dict[str, Figure]:
    """Draw the figures of a configuration and return them as kind → figure.

    A figure is left out if the results lack its data. For example, without learned routes there are no figures of
    routes, and for regression there are no figures of worst clients.
    """
    ids = {method.id for method in collected.methods_on(configuration)}
    drawn = [style for method, style in styles.items() if method in ids]
    arguments = (collected, drawn, configuration)
    figures = {
        "result": results.result(*arguments),
        "tradeoff": results.tradeoff(*arguments),
        **results.curves(*arguments),
        "routes": routes.routes(*arguments),
        **{kind: routes.recovery(*arguments, kind) for kind in routes.RECOVERY},
        "followed": routes.over_rounds(*arguments),
        "spread": clients.spread(*arguments),
        "worst_decile": clients.worst(*arguments, "decile"),
        "worst_cluster": clients.worst(*arguments, "cluster"),
        **{f"unseen_{kind}": clients.unseen(*arguments, kind) for kind in UNSEEN_KINDS},
    }
    return {kind: figure for kind, figure in figures.items() if figure is not None}

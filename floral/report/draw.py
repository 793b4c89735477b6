"""Draw all figures of one task with its settings."""

from __future__ import annotations

from collections.abc import Mapping

from floral.report.charts.render import Figure, Preset
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.figures import clients, results, routes
from floral.report.frames import UNSEEN_KINDS
from floral.report.style import Style


def has_figures(collected: Collected, configuration: Configuration) -> bool:
    """Return whether the report draws figures for this task with these settings. Otherwise it has only tables.

    A suite can run one task dozens of times, each time with another deviation from the paper's published code
    corrected. Such runs have no figures if the suite also runs the task without these changes.
    """
    same = [
        item
        for item in collected.configurations
        if item.task == configuration.task and item.fidelity == configuration.fidelity
    ]
    return not configuration.switches or all(item.switches for item in same)


def draw(
    collected: Collected, styles: Mapping[str, Style], configuration: Configuration, preset: Preset
) -> dict[str, Figure]:
    """Draw the figures of one task with its settings, and return them as kind → figure.

    A figure is left out if the results have no data for it. For example, regression has no figures of worst clients.
    """
    ids = {method.id for method in collected.methods_on(configuration)}
    drawn = [style for method, style in styles.items() if method in ids]
    arguments = (collected, drawn, configuration, preset)
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

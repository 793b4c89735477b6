"""Figures of the results: means with intervals, results against bytes, and learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from floral.report.charts.axes import Axis
from floral.report.charts.curves import curves as curves_chart
from floral.report.charts.render import Figure, Preset, render
from floral.report.charts.scatter import scatter
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.figures.axis_range import LIMITS, enclosing, far_methods, is_logarithmic, round_outwards
from floral.report.figures.method_rows import method_rows
from floral.report.figures.wording import overlap, ranking, values_text
from floral.report.frames import curve
from floral.report.style import REFERENCE, Style
from floral.report.summarise import intervals, result_unit
from floral.report.tables import number


def result(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset
) -> Figure | None:
    """Plot each method's mean with its 95 % interval, and the result of every seed."""
    unit, means = result_unit(configuration), intervals(collected, configuration)
    if not means:
        return None
    values = collected.values(configuration, unit.column)
    marks = []
    for method, interval in means.items():
        marks.append((method, "hollow" if interval.low is None else "dot", interval.mean, None))
        if interval.low is not None:
            marks.append((method, "interval", interval.low, interval.high))
    for method, by_seed in values.items():
        if len(by_seed) > 1 or method not in means:
            marks += [(method, "tick", unit.scale * value, None) for value in by_seed.values()]
    subtitle = "mean and 95 % interval; ticks: seeds; hollow: one seed"
    alt_text = values_text(unit.title, configuration, styles, means, unit.digits)
    by_mean = {method: interval.mean for method, interval in means.items()}
    ranked = ranking(by_mean, styles, unit.digits, unit.higher_is_better)
    see = f"Best mean first: {ranked}{overlap(means, unit.higher_is_better)}"
    return method_rows(marks, styles, configuration, preset, "result", unit.title, unit.digits, subtitle, alt_text, see)


def tradeoff(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset
) -> Figure | None:
    """Plot the result of each method against the bytes that all clients and the server send in a whole run."""
    unit, means = result_unit(configuration), intervals(collected, configuration)
    sent = collected.values(configuration, "bytes")
    drawn = [style for style in styles if style.id in means and style.id in sent]
    if not drawn:
        return None
    limits, centres = LIMITS[configuration.metric], {s.id: (means[s.id].mean, means[s.id].mean) for s in drawn}
    far = far_methods(centres, {style.id for style in styles if style.group == "control"})
    low, high = enclosing(ends for method, ends in centres.items() if method not in far)
    log = is_logarithmic(configuration, (low, high))
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    domain = (low / 1.5, high * 1.5) if log else round_outwards((low - margin, high + margin), *limits)
    rows = []
    for style in drawn:
        mean, values = means[style.id], sent[style.id].values()
        ends = [mean.mean if end is None else end for end in (mean.low, mean.high)]
        if style.id not in far:
            rows.append((style.id, sum(values) / len(values), mean.mean, *ends))
    columns = ("method_id", "x", "mean", "low", "high")
    frame = pl.DataFrame(rows, schema=dict(zip(columns, (pl.String, *[pl.Float64] * 4), strict=True)), orient="row")
    alt_text = values_text(
        f"{unit.title} after the last round against bytes sent", configuration, drawn, means, unit.digits
    )
    sign = 1 if unit.higher_is_better else -1
    points = {s.id: (sum(sent[s.id].values()) / len(sent[s.id]), sign * means[s.id].mean) for s in drawn}
    rivals = [style for style in drawn if style.group == "method"] or drawn
    front = [s for s in rivals if not _dominated(points[s.id], [points[rival.id] for rival in rivals])]
    across = Axis(title="Bytes sent by and to all clients in a run", log=True, unit="B")
    named = {REFERENCE, *(style.id for style in front)}
    chart = scatter(frame, drawn, across, Axis(title=unit.title, log=log), domain, preset, named)
    outside = ", ".join(f"{s.short} {number(means[s.id].mean, unit.digits)}" for s in drawn if s.id in far)
    subtitle = ["mean and 95 % interval after the last round; long intervals end at the frame"]
    subtitle += [f"outside the axis: {outside}"] if outside else []
    names = ", ".join(style.short for style in front)
    see = f"Pareto front (none of the ranked methods has a better mean with at most as many bytes): {names}."
    return render(chart, preset, f"tradeoff_{configuration.id}", configuration.title, subtitle, alt_text, see)


def _dominated(point: tuple[float, float], points: Iterable[tuple[float, float]]) -> bool:
    """Return whether another method scores higher and sends no more bytes. A point is (bytes, score) of one method."""
    return any(sent <= point[0] and score > point[1] for sent, score in points)


def curves(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, preset: Preset
) -> dict[str, Figure | None]:
    """Plot three learning curves: against rounds, bytes and forward-backward passes. Return them as kind → figure."""
    unit = result_unit(configuration)
    names = {style.id: style.short for style in styles}
    horizontal = {
        "rounds": ("round", Axis(title="Round")),
        "bytes": ("bytes", Axis(title="Bytes sent so far, all clients", unit="B", log=True)),
        "passes": ("client_passes", Axis(title="Forward-backward passes so far", format="~s", log=True)),
    }
    figures: dict[str, Figure | None] = {}
    for kind, (column, axis) in horizontal.items():
        frame = curve(collected, configuration, f"test/{configuration.metric}", column, unit.scale)
        if frame.is_empty():
            continue
        log = is_logarithmic(configuration, [*frame["low"], *frame["high"]])
        last = frame.group_by("method_id", maintain_order=True).last()
        last = last.sort("mean", descending=unit.higher_is_better, maintain_order=True)
        alt_text = f"{unit.title} against {axis.title.lower()}, {configuration.title}. From best to worst at the end: "
        alt_text += ", ".join(names[method] for method in last["method_id"]) + "."
        vertical = Axis(title=unit.title, log=log, limits=LIMITS[configuration.metric])
        ends = dict(last.select("method_id", "mean").iter_rows())
        see = f"At the end: {ranking(ends, styles, unit.digits, unit.higher_is_better)}."
        chart = curves_chart(frame, styles, axis, vertical, preset)
        name, subtitle = f"{kind}_{configuration.id}", f"mean and range of the seeds against {kind}"
        figures[kind] = render(chart, preset, name, configuration.title, subtitle, alt_text, see)
    return figures

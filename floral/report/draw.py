"""Collected results → the figures of one setting: which data, which axes, which words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from floral.core.intervals import Interval
from floral.report import figures, summarise
from floral.report.collect import Collected, Configuration
from floral.report.figures import Axis, Figure
from floral.report.style import Style
from floral.report.tables import number

FEW_CLIENTS = 60
"""Up to so many clients each is drawn as a point; beyond, quantiles say it better."""

LIMITS = {"accuracy": (0.0, 100.0), "loss": (0.0, math.inf)}
"""Where values can be; an interval may know nothing of that and is cut there."""

CENTRES = ("dot", "hollow", "median")
"""The kinds of mark that stand for a contender where its marks do not fit."""

Looks = Mapping[str, Style]


def draws(collected: Collected, configuration: Configuration) -> bool:
    """Whether a setting has figures: not if it is another one of the suite with a switch turned. These can be dozens,
    and tables set them beside it."""
    alike = (
        one
        for one in collected.configurations
        if one.task == configuration.task and one.fidelity == configuration.fidelity
    )
    return not configuration.switches or all(one.switches for one in alike)


def draw(collected: Collected, styles: Looks, configuration: Configuration) -> dict[str, Figure]:
    """kind → figure; a kind without data (no route, no finished run, regression) is absent."""
    shown = [styles[method.id] for method in collected.present(configuration)]
    shown.sort(key=list(styles.values()).index)
    drawn = {
        "result": result(collected, shown, configuration),
        "tradeoff": tradeoff(collected, shown, configuration),
        **curves(collected, shown, configuration),
        "routes": routes(collected, shown, configuration),
        **{kind: recovery(collected, shown, configuration, kind) for kind in RECOVERY},
        "followed": followed(collected, shown, configuration),
        "spread": spread(collected, shown, configuration),
        "worst_decile": worst(collected, shown, configuration, "decile"),
        "worst_cluster": worst(collected, shown, configuration, "cluster"),
        **{f"unseen_{kind}": unseen(collected, shown, configuration, kind) for kind in summarise.JOINING},
    }
    return {kind: figure for kind, figure in drawn.items() if figure is not None}


def result(collected: Collected, styles: Sequence[Style], configuration: Configuration) -> Figure | None:
    unit, means = summarise.unit(collected, configuration), summarise.intervals(collected, configuration)
    if not means:
        return None
    values = collected.values(configuration, unit.column)
    marks = []
    for name, interval in means.items():
        marks.append((name, "hollow" if interval.low is None else "dot", interval.mean, None))
        if interval.low is not None:
            marks.append((name, "interval", interval.low, interval.high))
    for name, seeds in values.items():
        if len(seeds) > 1 or name not in means:
            marks += [(name, "tick", unit.scale * value, None) for value in seeds.values()]
    subtitle = "mean and 95 % interval; ticks: seeds; hollow: one seed"
    told = _told(unit.title, configuration, styles, means, unit.digits)
    ordered = {name: interval.mean for name, interval in means.items()}
    ranked = _ranked(ordered, styles, unit.digits, unit.higher_is_better)
    see = f"Best mean first: {ranked}{_overlap(means, unit.higher_is_better)}"
    return _rows(marks, styles, configuration, "result", unit.title, unit.digits, subtitle, told, see)


def tradeoff(collected: Collected, styles: Sequence[Style], configuration: Configuration) -> Figure | None:
    """The setting's result against all bytes that it took."""
    unit, means = summarise.unit(collected, configuration), summarise.intervals(collected, configuration)
    spent = collected.values(configuration, "bytes")
    shown = [style for style in styles if style.id in means and style.id in spent]
    if not shown:
        return None
    limits, centres = (
        LIMITS[configuration.metric],
        {style.id: (means[style.id].mean, means[style.id].mean) for style in shown},
    )
    far = _far(centres, {style.id for style in styles if style.group == "control"})
    low, high = _around(ends for name, ends in centres.items() if name not in far)
    log = _logarithmic(configuration, (low, high))
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    domain = (low / 1.5, high * 1.5) if log else _round((low - margin, high + margin), *limits)
    rows = []
    for style in shown:
        mean, values = means[style.id], spent[style.id].values()
        ends = [mean.mean if end is None else end for end in (mean.low, mean.high)]
        if style.id not in far:
            rows.append((style.id, sum(values) / len(values), mean.mean, *ends))
    names = ("contender", "x", "mean", "low", "high")
    frame = pl.DataFrame(rows, schema=dict(zip(names, (pl.String, *[pl.Float64] * 4), strict=True)), orient="row")
    told = _told(f"{unit.title} after the last round against bytes sent", configuration, shown, means, unit.digits)
    across = Axis(title="Bytes sent by and to all clients over the whole run", log=True)
    chart = figures.scatter(frame, shown, across, Axis(title=unit.title, log=log), domain)
    outside = ", ".join(
        f"{style.short} {number(means[style.id].mean, unit.digits)}" for style in shown if style.id in far
    )
    subtitle = ["mean and 95 % interval after the last round; an interval may leave the frame"]
    subtitle += [f"outside the axis: {outside}"] if outside else []
    sign = 1 if unit.higher_is_better else -1
    points = {
        style.id: (sum(spent[style.id].values()) / len(spent[style.id]), sign * means[style.id].mean) for style in shown
    }
    front = [style.short for style in shown if not _beaten(points[style.id], points.values())]
    see = f"No other method has a better mean for as few bytes or fewer than {', '.join(front)}."
    return figures.render(chart, f"tradeoff_{configuration.id}", configuration.title, subtitle, told, see)


def curves(collected: Collected, styles: Sequence[Style], configuration: Configuration) -> dict[str, Figure | None]:
    unit = summarise.unit(collected, configuration)
    over = {
        "rounds": ("round", Axis(title="Round")),
        "bytes": ("bytes", Axis(title="Bytes sent so far, all clients, up and down", format="~s", log=True)),
        "passes": ("client_passes", Axis(title="Passes so far (one model over one sample)", format="~s", log=True)),
    }
    drawn: dict[str, Figure | None] = {}
    for kind, (x, axis) in over.items():
        frame = summarise.curve(collected, configuration, f"test/{configuration.metric}", x, unit.scale)
        if frame.is_empty():
            continue
        log = _logarithmic(configuration, [*frame["low"], *frame["high"]])
        last = frame.group_by("contender").last().sort("mean", descending=unit.higher_is_better)
        names = {style.id: style.short for style in styles}
        told = f"{unit.title} against {axis.title.lower()}, {configuration.title}. From best to worst at the end: "
        told += ", ".join(names[name] for name in last["contender"]) + "."
        chart = figures.curves(
            frame, styles, axis, Axis(title=unit.title, log=log, limits=LIMITS[configuration.metric])
        )
        ends = dict(last.select("contender", "mean").iter_rows())
        see = f"At the end: {_ranked(ends, styles, unit.digits, unit.higher_is_better)}."
        drawn[kind] = figures.render(
            chart, f"{kind}_{configuration.id}", configuration.title, f"{unit.title}, against {kind}", told, see
        )
    return drawn


def routes(collected: Collected, styles: Sequence[Style], configuration: Configuration) -> Figure | None:
    learned = [style.id for style in styles if style.group == "method"]
    frame, seeds = summarise.route_weights(collected, configuration, learned)
    if frame.is_empty():
        return None
    chart = figures.routes(frame, styles, configuration.task.clients, int(frame["cluster"].max()) + 1)  # type: ignore[call-overload]
    names = {style.id: style.short for style in styles}
    right = frame.group_by("contender", maintain_order=True).agg(
        pl.col("weight").filter(pl.col("cluster") == pl.col("true_cluster")).mean()
    )
    told = f"Routes of {configuration.task.clients} clients, {configuration.title}. "
    told += "Mean weight on the matched true cluster: "
    told += ", ".join(f"{names[name]} {number(weight, 2)}" for name, weight in right.iter_rows()) + "."
    subtitle = "clients by true cluster × learned clusters, seed " + ", ".join(map(str, sorted(set(seeds.values()))))
    see = f"Mean weight on the matched true cluster: {_ranked(dict(right.iter_rows()), styles, 2)}."
    return figures.render(chart, f"routes_{configuration.id}", configuration.title, subtitle, told, see)


SHOWN_CLIENTS, SHOWN_ROUNDS = 10, 40
"""Clients of each true cluster, and rounds, in a picture of routes over rounds: more are too many rectangles."""


def followed(collected: Collected, styles: Sequence[Style], configuration: Configuration) -> Figure | None:
    """Which learned cluster some clients of each true cluster weigh most, over rounds, in one run."""
    rows = collected.routes
    if rows.is_empty() or (rows := rows.filter(pl.col("setting") == configuration.id)).is_empty():
        return None
    rows = rows.filter((pl.col("contender") == rows["contender"][0]) & pl.col("route").is_not_null())
    learned = int(rows["route"].list.len().max() or 0)  # type: ignore[arg-type]
    if not 2 <= learned <= len(figures.HUES):
        return None
    frame, right = summarise.followed_routes(rows, SHOWN_CLIENTS, SHOWN_ROUNDS)
    style, seed = next(style for style in styles if style.id == rows["contender"][0]), rows["seed"][0]
    see = f"Clients whose heaviest cluster is the one matched to their true cluster: {100 * right:.0f} % at the end."
    told = f"Heaviest learned cluster of clients over rounds, {style.short}, {configuration.title}. {see}"
    subtitle = [f"{style.short}, seed {seed}: the heaviest learned cluster of a client,", "deeper where it weighs more"]
    return figures.render(
        figures.followed(frame, learned), f"followed_{configuration.id}", configuration.title, subtitle, told, see
    )


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A measure of the routes over rounds: its metric, what it is, its axis and where it can be."""

    metric: str
    what: str
    subtitle: str
    axis: Axis
    higher: bool
    """Whether more of it is better."""


RECOVERY = {
    "recovery": Recovery(
        metric="route/ari", what="Adjusted Rand index of the routes against the true clusters",
        subtitle="adjusted Rand index: 1 recovered, 0 chance", axis=Axis(title="ARI", limits=(-1, 1)), higher=True,
    ),
    "mismatch": Recovery(
        metric="route/mismatch", what="Mismatch of p(k|c) with the true clusters",
        subtitle="mismatch of p(k|c): 0 recovered, 2 the worst", axis=Axis(title="Mismatch", limits=(0, 2)),
        higher=False,
    ),
    "entropy": Recovery(
        metric="route/entropy", what="Mean entropy of the clients' routes in nats",
        subtitle="entropy of a client's route, nats: 0 certain", axis=Axis(title="Entropy", limits=(0, math.inf)),
        higher=False,
    ),
}  # fmt: skip


def recovery(collected: Collected, styles: Sequence[Style], configuration: Configuration, kind: str) -> Figure | None:
    """A measure of learned routes against rounds."""
    of = RECOVERY[kind]
    learned = [style for style in styles if style.group != "oracle"]
    frame = summarise.curve(collected, configuration, of.metric, "round", 1)
    if not frame.is_empty():
        frame = frame.filter(pl.col("contender").is_in([style.id for style in learned]))
    if frame.is_empty():
        return None
    names = {style.id: style.short for style in styles}
    last = frame.group_by("contender", maintain_order=True).last()
    told = f"{of.what}, {configuration.title}; at the end: "
    told += ", ".join(f"{names[row['contender']]} {number(row['mean'], 2)}" for row in last.iter_rows(named=True)) + "."
    see = f"At the end: {_ranked(dict(last.select('contender', 'mean').iter_rows()), styles, 2, of.higher)}."
    chart = figures.curves(frame, learned, Axis(title="Round"), of.axis)
    return figures.render(chart, f"{kind}_{configuration.id}", configuration.title, of.subtitle, told, see)


def spread(collected: Collected, styles: Sequence[Style], configuration: Configuration) -> Figure | None:
    unit = summarise.unit(collected, configuration)
    clients = summarise.spread(collected, configuration, configuration.metric, unit.scale)
    if clients.is_empty():
        return None
    marks, quantiles = [], {}
    for (name,), rows in clients.group_by("contender", maintain_order=True):
        low, first, middle, third, high = np.quantile(rows["value"].to_numpy(), [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
        quantiles[str(name)] = Interval(mean=middle, low=low, high=high, n=rows.height)
        marks += [(name, "whisker", low, high), (name, "box", first, third), (name, "median", middle, None)]
        seed = rows.filter(pl.col("seed") == pl.col("seed").min())
        if configuration.task.clients <= FEW_CLIENTS:
            marks += [(name, "point", value, None) for value in seed["value"].unique(maintain_order=True)]
    told = _told(
        f"Clients' {configuration.metric}, median and 5 to 95 %", configuration, styles, quantiles, unit.digits
    )
    title, subtitle = f"{unit.title}, of single clients", "clients of all seeds: 5, 25, 50, 75 and 95 %"
    served = {n: found.low if unit.higher_is_better else found.high for n, found in quantiles.items()}
    ranked = _ranked(
        {n: end for n, end in served.items() if end is not None}, styles, unit.digits, unit.higher_is_better
    )
    see = f"What 95 % of the clients have at {'least' if unit.higher_is_better else 'most'}: {ranked}."
    return _rows(marks, styles, configuration, "spread", title, unit.digits, subtitle, told, see)


def worst(
    collected: Collected, styles: Sequence[Style], configuration: Configuration, which: Literal["decile", "cluster"]
) -> Figure | None:
    if configuration.metric == "loss":
        return None
    found = summarise.worst(collected, configuration, which)
    if not found:
        return None
    marks = []
    for one in found:
        seeds = [100 * value for value in one.observed.values()]
        marks += [
            (one.method, "band", 100 * one.null.low, 100 * one.null.high),
            (one.method, "middle", 100 * one.null.mean, None),
        ]
        marks += [(one.method, "tick", value, None) for value in seeds if len(seeds) > 1]
        marks.append((one.method, "dot", sum(seeds) / len(seeds), None))
    shorts = {style.id: style.short for style in styles}
    told = f"Worst {which}, {configuration.title}. Runs below what chance alone would give: "
    told += ", ".join(f"{shorts[one.method]} {one.below_chance} of {len(one.observed)}" for one in found) + "."
    subtitle = "dot: mean; ticks: seeds; grey: one seed by chance alone"
    unlucky = [shorts[one.method] for one in found if one.below_chance == len(one.observed)]
    see = f"Below chance in every seed: {', '.join(unlucky) or 'none'}."
    return _rows(
        marks, styles, configuration, f"worst_{which}", f"Accuracy of the worst {which}, %", 1, subtitle, told, see
    )


def unseen(collected: Collected, styles: Sequence[Style], configuration: Configuration, kind: str) -> Figure | None:
    """Accuracy of clients that join after training, against their number of samples."""
    frame = summarise.joined(collected, configuration, kind)
    if frame.is_empty():
        return None
    last = frame.group_by("contender").last().sort("mean", descending=True)
    names = {style.id: style.short for style in styles}
    told = f"Accuracy of {summarise.JOINING[kind]} that join after training, "
    told += f"against labelled samples, {configuration.title}. "
    told += "From best to worst with all samples: " + ", ".join(names[name] for name in last["contender"]) + "."
    places = tuple(frame["x"].unique().sort().to_list())
    across = Axis(title="Labelled samples of a client, in all", places=places)
    up = Axis(title="Accuracy, %", limits=LIMITS["accuracy"])
    chart = figures.curves(frame.drop("seeds"), styles, across, up)
    subtitle = [f"Accuracy, %, of {summarise.JOINING[kind]}", "mean and range of the seeds"]
    see = f"With all samples: {_ranked(dict(last.select('contender', 'mean').iter_rows()), styles, 1)}."
    return figures.render(chart, f"unseen_{kind}_{configuration.id}", configuration.title, subtitle, told, see)


# ----------------------------------------------------------------------------------------- what to see


def _ranked(values: Mapping[str, float], styles: Sequence[Style], digits: int | None, higher: bool = True) -> str:
    """`A 84.3, B 83.9, C 81.0 … Z 10.2`: the first three of `values` (contender → value), best first, and the last."""
    shorts = {style.id: style.short for style in styles}
    ranked = sorted(((n, v) for n, v in values.items() if v is not None), key=lambda pair: pair[1], reverse=higher)
    told = [f"{shorts[name]} {number(value, digits)}" for name, value in ranked]
    return ", ".join(told) if len(told) <= 4 else f"{', '.join(told[:3])} … {told[-1]}"


def _overlap(means: Mapping[str, Interval], higher: bool) -> str:
    """How many intervals reach into that of the best mean."""
    ranked = sorted(means.values(), key=lambda interval: interval.mean, reverse=higher)
    if len(ranked) < 2 or ranked[0].low is None:
        return "."
    first, others = ranked[0], [found for found in ranked[1:] if found.low is not None]
    reach = sum(found.high >= first.low if higher else found.low <= first.high for found in others)  # type: ignore[operator]
    return f"; the interval of the first meets those of {reach} of {len(others)} others."


def _beaten(point: tuple[float, float], others: Iterable[tuple[float, float]]) -> bool:
    """Whether another spends no more and has a better result."""
    return any(bytes_ <= point[0] and result > point[1] for bytes_, result in others)


# ------------------------------------------------------------------------------- one row for each contender

Mark = tuple[str, str, float, float | None]
"""contender, kind, value, value2: what figures.rows draws."""

Range = tuple[float, float]


def _rows(
    marks: list[Mark], styles: Sequence[Style], configuration: Configuration, kind: str, title: str, digits: int | None,
    subtitle: str, told: str, see: str = "",
) -> Figure:  # fmt: skip
    """The marks on an axis that tells the rivals apart; what it does not show as it is stands in the subtitle."""
    low, high = LIMITS[configuration.metric]
    measured = [end for _, k, *ends in marks if k != "interval" for end in ends if end is not None]
    log = _logarithmic(configuration, measured)
    low = min(measured) / 1.5 if log else low
    clipped: list[Mark] = [
        (n, k, _clip(v, low, high), None if w is None else _clip(w, low, high)) for n, k, v, w in marks
    ]
    cut = {before[0] for before, after in zip(marks, clipped, strict=True) if before != after}
    far = set() if log else _far(_ranges(clipped), {style.id for style in styles if style.group == "control"})
    ends = _around(r for name, r in _ranges(clipped).items() if name not in far)
    start, stop = (low, 1.5 * ends[1]) if log else _round(ends, low, high)
    labels = [
        (n, "below", start, None, f"← {number(v, digits)}")
        if v < start
        else (n, "above", stop, None, f"{number(v, digits)} →")
        for n, k, v, _ in clipped
        if n in far and k in CENTRES
    ]
    edge = "the axis" if log else "0" if high == math.inf else "0 or 100 %"
    notes = {"outside the axis": far, f"interval cut at {edge}": cut}
    lines = [
        f"{what}: {_few(style.short for style in styles if style.id in who)}" for what, who in notes.items() if who
    ]
    types = {"contender": pl.String, "kind": pl.String, "value": pl.Float64, "value2": pl.Float64, "label": pl.String}
    kept = [(*mark, None) for mark in clipped if mark[0] not in far]
    frame = pl.DataFrame([*kept, *labels], schema=types, orient="row").with_columns(
        pl.col("value", "value2").round_sig_figs(6)
    )
    chart = figures.rows(frame, styles, Axis(title=title, log=log), (start, stop))
    return figures.render(chart, f"{kind}_{configuration.id}", configuration.title, [subtitle, *lines], told, see)


def _logarithmic(configuration: Configuration, values: Iterable[float]) -> bool:
    """Whether these are errors over more than a power and a half of ten, which a linear axis would press together."""
    values = list(values)
    return configuration.metric == "loss" and 0 < min(values) < max(values) / 30


def _few(names: Iterable[str]) -> str:
    """Names while they fit into a line, else their number."""
    names = list(names)
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} methods"


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _ranges(marks: list[Mark]) -> dict[str, Range]:
    """contender → lowest and highest of its marks."""
    found: dict[str, list[float]] = {}
    for name, _, *ends in marks:
        found.setdefault(name, []).extend(end for end in ends if end is not None)
    return {name: (min(values), max(values)) for name, values in found.items()}


def _around(ranges: Iterable[Range]) -> Range:
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)


def _far(ranges: Mapping[str, Range], controls: set[str]) -> set[str]:
    """Controls far from all rivals, if without them the others get more than twice the room."""
    rivals = [found for name, found in ranges.items() if name not in controls]
    if not rivals:
        return set()
    low, high = _around(rivals)
    margin = (high - low) / 2
    far = {n for n in controls & ranges.keys() if ranges[n][1] < low - margin or ranges[n][0] > high + margin}
    (first, last), (start, stop) = _around(ranges.values()), _around(r for n, r in ranges.items() if n not in far)
    return far if 2 * (stop - start) < last - first else set()


def _round(ends: Range, low: float, high: float) -> Range:
    """Both ends moved outwards to a round number, but not beyond low and high."""
    span = ends[1] - ends[0] or abs(ends[1]) / 10 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span <= 5 * factor * power)
    margin = 0.02 * span
    start, stop = math.floor((ends[0] - margin) / step) * step, math.ceil((ends[1] + margin) / step) * step
    return _clip(start, low, high), _clip(stop, low, high)


def _told(
    what: str, configuration: Configuration, styles: Sequence[Style], values: Mapping[str, Interval], digits: int | None
) -> str:
    told = []
    for style in styles:
        if (interval := values.get(style.id)) is not None:
            ends = (
                ""
                if interval.low is None or interval.high is None
                else f" ({number(interval.low, digits)} to {number(interval.high, digits)})"
            )
            told.append(f"{style.short} {number(interval.mean, digits)}{ends}")
    return f"{what}, {configuration.title}: {'; '.join(told)}."

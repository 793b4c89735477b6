"""Collected results → the figures of one setting: which data, which axes, which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl

from floral import figures
from floral.figures import Axis, Figure
from floral.looks import Look
from floral.stages import summarise
from floral.stages.collect import Collected, Setting
from floral.statistics import Interval
from floral.tables import number

FEW_CLIENTS = 60
"""Up to so many clients each is drawn as a point; beyond, quantiles say it better."""

Looks = Mapping[str, Look]


def draw(collected: Collected, looks: Looks, setting: Setting) -> dict[str, Figure]:
    """kind → figure; a kind without data (no route, no finished run, regression) is absent."""
    shown = [looks[contender.id] for contender in collected.present(setting)]
    shown.sort(key=list(looks.values()).index)
    drawn = {
        "result": result(collected, shown, setting),
        **curves(collected, shown, setting),
        "routes": routes(collected, shown, setting),
        "recovery": recovery(collected, shown, setting),
        "spread": spread(collected, shown, setting),
        "worst_decile": worst(collected, shown, setting, "decile"),
        "worst_cluster": worst(collected, shown, setting, "cluster"),
    }
    return {kind: figure for kind, figure in drawn.items() if figure is not None}


def result(collected: Collected, looks: Sequence[Look], setting: Setting) -> Figure | None:
    unit, means = summarise.unit(collected, setting), summarise.intervals(collected, setting)
    if not means:
        return None
    values = collected.values(setting, unit.column)
    marks = []
    for name, interval in means.items():
        marks.append((name, "hollow" if interval.low is None else "dot", interval.mean, None))
        if interval.low is not None:
            marks.append((name, "interval", interval.low, interval.high))
            marks += [(name, "tick", unit.scale * value, None) for value in values[name].values()]
    return figures.render(
        figures.rows(_marks(marks), looks, Axis(title=unit.title)), f"result_{setting.id}", setting.title,
        "mean and 95 % interval; ticks: seeds; hollow: one seed", _told(unit.title, setting, looks, means, unit.digits),
    )  # fmt: skip


def curves(collected: Collected, looks: Sequence[Look], setting: Setting) -> dict[str, Figure | None]:
    unit = summarise.unit(collected, setting)
    over = {
        "rounds": ("round", Axis(title="Round")),
        "bytes": ("bytes", Axis(title="Bytes sent so far, all clients, up and down", format="~s", log=True)),
        "passes": ("client_passes", Axis(title="Passes so far (one model over one sample)", format="~s", log=True)),
    }
    drawn: dict[str, Figure | None] = {}
    for kind, (x, axis) in over.items():
        frame = summarise.curve(collected, setting, f"test/{setting.metric}", x, unit.scale)
        if frame.is_empty():
            continue
        log = setting.metric == "loss" and frame["low"].min() > 0 and frame["high"].max() > 30 * frame["low"].min()  # type: ignore[operator]
        last = frame.group_by("contender").last().sort("mean", descending=unit.higher_is_better)
        names = {look.id: look.short for look in looks}
        told = f"{unit.title} against {axis.title.lower()}, {setting.title}. From best to worst at the end: "
        told += ", ".join(names[name] for name in last["contender"]) + "."
        chart = figures.curves(frame, looks, axis, Axis(title=unit.title, log=bool(log)))
        drawn[kind] = figures.render(
            chart, f"{kind}_{setting.id}", setting.title, f"{unit.title}, against {kind}", told
        )
    return drawn


def routes(collected: Collected, looks: Sequence[Look], setting: Setting) -> Figure | None:
    learned = [look.id for look in looks if look.group == "method"]
    frame, seeds = summarise.route_weights(collected, setting, learned)
    if frame.is_empty():
        return None
    chart = figures.routes(frame, looks, setting.task.clients, int(frame["cluster"].max()) + 1)  # type: ignore[call-overload]
    names = {look.id: look.short for look in looks}
    right = frame.group_by("contender", maintain_order=True).agg(
        pl.col("weight").filter(pl.col("cluster") == pl.col("true_cluster")).mean()
    )
    told = f"Routes of {setting.task.clients} clients, {setting.title}. Mean weight on the matched true cluster: "
    told += ", ".join(f"{names[name]} {number(weight, 2)}" for name, weight in right.iter_rows()) + "."
    subtitle = "clients by true cluster × learned clusters, seed " + ", ".join(map(str, sorted(set(seeds.values()))))
    return figures.render(chart, f"routes_{setting.id}", setting.title, subtitle, told)


def recovery(collected: Collected, looks: Sequence[Look], setting: Setting) -> Figure | None:
    learned = [look for look in looks if look.group != "oracle"]
    frame = summarise.curve(collected, setting, "route/ari", "round", 1)
    if not frame.is_empty():
        frame = frame.filter(pl.col("contender").is_in([look.id for look in learned]))
    if frame.is_empty():
        return None
    names = {look.id: look.short for look in looks}
    last = frame.group_by("contender", maintain_order=True).last()
    told = f"Adjusted Rand index of the routes against the true clusters, {setting.title}; at the end: "
    told += ", ".join(f"{names[row['contender']]} {number(row['mean'], 2)}" for row in last.iter_rows(named=True)) + "."
    chart = figures.curves(frame, learned, Axis(title="Round"), Axis(title="ARI"))
    subtitle = "adjusted Rand index: 1 recovered, 0 chance"
    return figures.render(chart, f"recovery_{setting.id}", setting.title, subtitle, told)


def spread(collected: Collected, looks: Sequence[Look], setting: Setting) -> Figure | None:
    unit = summarise.unit(collected, setting)
    clients = summarise.spread(collected, setting, setting.metric, unit.scale)
    if clients.is_empty():
        return None
    marks, quantiles = [], {}
    for (name,), rows in clients.group_by("contender", maintain_order=True):
        low, first, middle, third, high = np.quantile(rows["value"].to_numpy(), [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
        quantiles[str(name)] = Interval(mean=middle, low=low, high=high, n=rows.height)
        marks += [(name, "whisker", low, high), (name, "box", first, third), (name, "median", middle, None)]
        seed = rows.filter(pl.col("seed") == pl.col("seed").min())
        if setting.task.clients <= FEW_CLIENTS:
            marks += [(name, "point", value, None) for value in seed["value"].unique(maintain_order=True)]
    title = f"{unit.title}, of single clients"
    return figures.render(
        figures.rows(_marks(marks), looks, Axis(title=title)), f"spread_{setting.id}", setting.title,
        "clients of all seeds: 5, 25, 50, 75 and 95 %",
        _told(f"Clients' {setting.metric}, median and 5 to 95 %", setting, looks, quantiles, unit.digits),
    )  # fmt: skip


def worst(
    collected: Collected, looks: Sequence[Look], setting: Setting, which: Literal["decile", "cluster"]
) -> Figure | None:
    if setting.metric == "loss":
        return None
    found = summarise.worst(collected, setting, which)
    if not found:
        return None
    marks = []
    for one in found:
        seeds = [100 * value for value in one.observed.values()]
        marks += [
            (one.contender, "band", 100 * one.null.low, 100 * one.null.high),
            (one.contender, "middle", 100 * one.null.mean, None),
        ]
        marks += [(one.contender, "tick", value, None) for value in seeds if len(seeds) > 1]
        marks.append((one.contender, "dot", sum(seeds) / len(seeds), None))
    shorts = {look.id: look.short for look in looks}
    told = f"Worst {which}, {setting.title}. Runs below what chance alone would give: "
    told += ", ".join(f"{shorts[one.contender]} {one.below_chance} of {len(one.observed)}" for one in found) + "."
    chart = figures.rows(_marks(marks), looks, Axis(title=f"Accuracy of the worst {which}, %"))
    subtitle = "dot: mean; ticks: seeds; grey: chance alone"
    return figures.render(chart, f"worst_{which}_{setting.id}", setting.title, subtitle, told)


def _marks(marks: list[tuple[object, str, float, float | None]]) -> pl.DataFrame:
    schema = {"contender": pl.String, "kind": pl.String, "value": pl.Float64, "value2": pl.Float64}
    return pl.DataFrame(marks, schema=schema, orient="row").with_columns(pl.col("value", "value2").round(6))


def _told(what: str, setting: Setting, looks: Sequence[Look], values: Mapping[str, Interval], digits: int) -> str:
    told = []
    for look in looks:
        if (interval := values.get(look.id)) is not None:
            ends = (
                ""
                if interval.low is None or interval.high is None
                else f" ({number(interval.low, digits)} to {number(interval.high, digits)})"
            )
            told.append(f"{look.short} {number(interval.mean, digits)}{ends}")
    return f"{what}, {setting.title}: {'; '.join(told)}."

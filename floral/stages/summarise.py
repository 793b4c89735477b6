"""Collected results → the cells of the tables and the frames of the figures. Pure: frames in, frames out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from floral import statistics
from floral.looks import Look
from floral.stages.collect import Collected, Setting
from floral.statistics import Interval, NullBand
from floral.tables import EMPTY, Cell, amount, interval_cell, number

REFERENCE = "floral_1"
"""The variant that all others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How a setting's result is shown: accuracies in per cent, losses as they are."""

    column: str
    title: str
    difference: str
    scale: float
    digits: int
    higher_is_better: bool


def unit(collected: Collected, setting: Setting) -> Unit:
    if setting.metric == "accuracy":
        return Unit(
            column="test_accuracy", title="Accuracy, %", difference="points", scale=100, digits=1, higher_is_better=True
        )
    losses = [
        value for seeds in collected.values(setting, "test_loss").values() for value in seeds.values() if value > 0
    ]
    digits = min(6, max(1, 2 - math.floor(math.log10(median(losses))))) if losses else 3
    return Unit(
        column="test_loss", title="Test loss", difference="loss", scale=1, digits=digits, higher_is_better=False
    )


def scaled(seeds: Mapping[int, float], factor: float) -> dict[int, float]:
    return {seed: factor * value for seed, value in seeds.items()}


def intervals(collected: Collected, setting: Setting) -> dict[str, Interval]:
    """contender → mean and interval over the seeds that are done, in the setting's unit."""
    shown = unit(collected, setting)
    values = collected.values(setting, shown.column)
    return {
        contender: statistics.t_interval(list(scaled(seeds, shown.scale).values()))
        for contender, seeds in values.items()
    }


def differences(collected: Collected, setting: Setting) -> dict[str, Interval]:
    """contender → paired difference to the reference variant; empty where the reference has no result."""
    shown = unit(collected, setting)
    values = {name: scaled(seeds, shown.scale) for name, seeds in collected.values(setting, shown.column).items()}
    if REFERENCE not in values:
        return {}
    paired = {
        name: statistics.paired_difference(seeds, values[REFERENCE])
        for name, seeds in values.items()
        if name != REFERENCE
    }
    return {name: difference for name, difference in paired.items() if difference is not None}


# --------------------------------------------------------------------------------------- main table


def lost(collected: Collected, setting: Setting) -> dict[str, dict[str, int]]:
    """contender → status other than done → number of seeds, plus `all`: how many seeds the suite asks for."""
    found: dict[str, dict[str, int]] = {}
    rows = collected.summary.filter(pl.col("setting") == setting.id)
    for contender, status in rows.select("contender", "status").iter_rows():
        counts = found.setdefault(contender, {"all": 0})
        counts["all"] += 1
        if status != "done":
            counts[status] = counts.get(status, 0) + 1
    return found


def usual_seeds(collected: Collected) -> int:
    """The largest number of seeds that the suite asks of a cell; a cell says its own n where that differs."""
    seeds = collected.summary.group_by("setting", "contender").len()["len"]
    return int(seeds.max())  # type: ignore[arg-type]


def lost_note(counts: Mapping[str, int]) -> str:
    """`1 of 3 diverged`; empty when every seed is done."""
    return ", ".join(f"{count} of {counts['all']} {status}" for status, count in counts.items() if status != "all")


def marks(means: Mapping[str, Interval], looks: Mapping[str, Look], complete: set[str], higher: bool) -> dict[str, str]:
    """Best and second mean among methods (no oracle, no control) of which every seed is done; ties share a mark."""
    rivals = {name: round(v.mean, 9) for name, v in means.items() if looks[name].group == "method" and name in complete}
    levels = sorted(set(rivals.values()), reverse=higher)[:2]
    return {name: ("best", "second")[levels.index(mean)] for name, mean in rivals.items() if mean in levels}


def main_cells(collected: Collected, looks: Mapping[str, Look], setting: Setting) -> dict[str, dict[str, Cell]]:
    """contender → `value`, `official`, `difference` → cell."""
    shown, counts = unit(collected, setting), lost(collected, setting)
    means, paired = intervals(collected, setting), differences(collected, setting)
    complete = {name for name, count in counts.items() if len(count) == 1}
    usual = usual_seeds(collected)
    marked = marks(means, looks, complete, shown.higher_is_better)
    official = collected.values(setting, "official_score")
    score = 1 if setting.metric == "loss" else 100
    cells: dict[str, dict[str, Cell]] = {}
    for name, count in counts.items():
        note = lost_note(count)
        if name not in means:
            cells[name] = {"value": Cell(text=EMPTY.text, note=note)}
            continue
        cells[name] = {
            "value": interval_cell(means[name], shown.digits, note=note, mark=marked.get(name, ""), usual=usual)
        }
        if name in official:
            interval = statistics.t_interval(list(scaled(official[name], score).values()))
            cells[name]["official"] = interval_cell(interval, shown.digits, note=note, usual=usual)
        if name in paired:
            cells[name]["difference"] = interval_cell(paired[name], shown.digits, sign=True, usual=usual)
        elif name == REFERENCE and len(means) > 1:
            cells[name]["difference"] = Cell(text="reference")
    return cells


# ------------------------------------------------------------------------------------ worst clients


@dataclass(frozen=True, kw_only=True)
class Worst:
    """A contender's worst decile or cluster, by seed and by chance: fractions, on the clients' own test rows."""

    contender: str
    observed: dict[int, float]
    null: NullBand

    @property
    def below_chance(self) -> int:
        return sum(value < self.null.low for value in self.observed.values())


def worst(collected: Collected, setting: Setting, which: Literal["decile", "cluster"]) -> list[Worst]:
    """The last round's worst decile of clients, or worst true cluster, and its null.

    Only own rows will do: they are disjoint, so that clients' errors are independent under the null. Its common
    accuracy is the mean of own_test_accuracy over the seeds; its row counts are those of the first seed's partition.
    """
    metric, rows = f"test/worst_{which}_accuracy", collected.own_rows.filter(pl.col("setting") == setting.id)
    if collected.curves.is_empty() or rows.is_empty():
        return []
    rows = rows.filter(pl.col("seed") == pl.col("seed").min())
    by = rows if which == "decile" else rows.group_by("cluster", maintain_order=True).agg(pl.col("rows").sum())
    count = statistics.decile_count(rows.height) if which == "decile" else 1
    last = collected.curves.filter((pl.col("setting") == setting.id) & (pl.col("metric") == metric))
    last = last.filter(pl.col("round") == pl.col("round").max().over("contender", "seed"))
    values = {
        (contender, seed): value for contender, seed, value in last.select("contender", "seed", "value").iter_rows()
    }
    found = []
    for contender, seeds in collected.values(setting, "own_test_accuracy").items():
        observed = {seed: values[contender, seed] for seed in seeds if (contender, seed) in values}
        if observed:
            common = sum(seeds.values()) / len(seeds)
            null = statistics.binomial_null(by["rows"].to_list(), common, count, draws=1000)
            found.append(Worst(contender=contender, observed=observed, null=null))
    return found


def worst_cell(found: Worst, usual: int) -> Cell:
    interval = statistics.t_interval([100 * value for value in found.observed.values()])
    band = f"chance {number(100 * found.null.low, 0)}\u2013{number(100 * found.null.high, 0)}"
    return interval_cell(interval, 1, note=band, usual=usual)


def _done_clients(collected: Collected, setting: Setting) -> pl.DataFrame:
    done = collected.summary.filter((pl.col("setting") == setting.id) & (pl.col("status") == "done"))
    if done.is_empty():
        return collected.clients.clear()
    return collected.clients.join(
        done.select("setting", "contender", "seed"), on=["setting", "contender", "seed"], maintain_order="left"
    )


# -------------------------------------------------------------------------------------------- frames


def curve(collected: Collected, setting: Setting, metric: str, x: str, factor: float) -> pl.DataFrame:
    """contender, x, mean, low, high, n over the seeds with a finite value at that round; times `factor`."""
    if collected.curves.is_empty():
        return pl.DataFrame()
    rows = collected.curves.filter(
        (pl.col("setting") == setting.id) & (pl.col("metric") == metric) & pl.col("value").is_finite()
    )
    value = pl.col("value") * factor
    return (
        rows.group_by("contender", "round", maintain_order=True)
        .agg(x=pl.col(x).mean(), mean=value.mean(), low=value.min(), high=value.max(), n=pl.len())
        .sort("contender", "round")
        .select("contender", pl.col("x", "mean", "low", "high").cast(pl.Float64).round_sig_figs(6), "n")
    )


def spread(collected: Collected, setting: Setting, column: str, factor: float) -> pl.DataFrame:
    """One row per contender, seed and client: contender, seed, value (finite only)."""
    rows = _done_clients(collected, setting)
    if rows.is_empty():
        return rows
    rows = rows.select("contender", "seed", value=pl.col(column) * factor)
    return rows.filter(pl.col("value").is_not_null() & pl.col("value").is_finite())


def route_weights(collected: Collected, setting: Setting, contenders: list[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """The last routes of each contender's first finished seed, long form for a heat map, and that seed.

    Clients are ordered by true cluster. Learned clusters carry arbitrary numbers: they are renumbered by the
    assignment to true clusters with the largest total weight.
    """
    rows = _done_clients(collected, setting)
    if rows.is_empty():
        return rows, {}
    rows = rows.filter(pl.col("contender").is_in(contenders) & pl.col("route").is_not_null())
    frames, seeds = [], {}
    for (name,), own in rows.group_by("contender", maintain_order=True):
        seeds[str(name)] = seed = own["seed"].min()
        own = own.filter(pl.col("seed") == seed).sort("cluster", "client")
        weights = np.array(own["route"].to_list())
        truth = own["cluster"].to_numpy()
        mass = np.zeros((max(int(truth.max()) + 1, weights.shape[1]), weights.shape[1]))
        np.add.at(mass, truth, weights)
        matched, learned = linear_sum_assignment(-mass)
        order = learned[np.argsort(matched)]
        positions, clusters = np.indices(weights.shape)
        frames.append(
            pl.DataFrame({
                "contender": [str(name)] * weights.size, "position": positions.ravel(), "cluster": clusters.ravel(),
                "weight": weights[:, order].ravel(), "true_cluster": np.repeat(truth, weights.shape[1]),
            })
        )  # fmt: skip
    return (pl.concat(frames) if frames else pl.DataFrame()), seeds


# --------------------------------------------------------------------------------------------- costs


def cost_cells(collected: Collected, setting: Setting) -> dict[str, dict[str, Cell]]:
    """contender → cost → cell; seconds and memory are means over the finished seeds."""
    if collected.costs.is_empty():
        return {}
    costs = collected.costs.filter(pl.col("setting") == setting.id)
    total = collected.summary.filter(pl.col("setting") == setting.id)
    cells: dict[str, dict[str, Cell]] = {}
    for (name,), rows in costs.group_by("contender", maintain_order=True):
        first = rows.row(0, named=True)
        spent = total.filter(pl.col("contender") == name)["bytes"].max()
        values = {
            **first["parameters"], "bytes_per_round": first["bytes_per_round"], "bytes": spent,
            "passes_per_sample": first["passes_per_sample"],
            "seconds": rows["seconds"].struct.field("total").mean(), "memory": rows["peak_memory_bytes"].mean(),
        }  # fmt: skip
        cells[str(name)] = {
            key: EMPTY if value is None else Cell(text=amount(float(value)), order=float(value))
            for key, value in values.items()
        }
    return cells

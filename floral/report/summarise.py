"""Collected results → the cells of the tables and the frames of the figures. Pure: frames in, frames out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from floral.core.intervals import ENOUGH, Interval, interval
from floral.report import statistics
from floral.report.collect import Collected, Configuration
from floral.report.paired import Clients, Paired
from floral.report.statistics import NullBand
from floral.report.style import Style
from floral.report.tables import EMPTY, Cell, interval_cell, number

REFERENCE = "floral_1"
"""The variant that all others are compared with."""
MANY_CLASSES = 20
"""From so many on the main table has the top-5 accuracy."""
OF_CLIENTS = {"test_accuracy": "accuracy", "test_loss": "loss"}
"""Columns of the summary that are means over clients, and of what; the others are resampled by seeds alone."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How a setting's result is shown: accuracies in per cent, losses as they are."""

    column: str
    title: str
    difference: str
    scale: float
    digits: int | None
    """Decimals of an accuracy; None: three significant digits, for errors span many powers of ten."""
    higher_is_better: bool


def unit(collected: Collected, configuration: Configuration) -> Unit:
    if configuration.metric == "accuracy":
        return Unit(
            column="test_accuracy",
            title=accuracy_title(configuration),
            difference="points",
            scale=100,
            digits=1,
            higher_is_better=True,
        )
    return Unit(column="test_loss", title="Test MSE", difference="loss", scale=1, digits=None, higher_is_better=False)


def accuracy_title(configuration: Configuration) -> str:
    """What an accuracy is called: of text, one per character or token."""
    return f"Accuracy per {configuration.task.per}, %" if configuration.task.per else "Accuracy, %"


def perplexities(collected: Collected, configuration: Configuration) -> dict[str, Interval]:
    """contender → mean and interval of exp(test loss), the perplexity per character or token; empty but for text."""
    if configuration.task.per is None:
        return {}
    return {
        name: interval([math.exp(loss) for loss in seeds.values()])
        for name, seeds in collected.values(configuration, "test_loss").items()
        if name not in without_mean(collected, configuration)
    }


def scaled(seeds: Mapping[int, float], factor: float) -> dict[int, float]:
    return {seed: factor * value for seed, value in seeds.items()}


def results(collected: Collected, configuration: Configuration) -> Paired:
    """The setting's result in its unit, of all contenders but without_mean."""
    return _paired(
        collected, configuration.id, unit(collected, configuration).column, unit(collected, configuration).scale
    )


@lru_cache(maxsize=256)
def _paired(collected: Collected, id_: str, column: str, factor: float) -> Paired:
    """Kept, since a bootstrap is drawn once for all that a page says of its means and differences."""
    configuration = next(one for one in collected.configurations if one.id == id_)
    excluded = without_mean(collected, configuration)
    found = collected.values(configuration, column).items()
    values = {name: scaled(seeds, factor) for name, seeds in found if name not in excluded}
    clients: dict[tuple[str, int], Clients] = {}
    if column in OF_CLIENTS and any(len(seeds) >= ENOUGH for seeds in values.values()):
        by_run = _done_clients(collected, configuration).group_by("contender", "seed", maintain_order=True)
        for (name, seed), rows in by_run:
            own, weights = rows[OF_CLIENTS[column]].to_numpy(), rows["test_rows"].to_numpy()
            clients[str(name), int(seed)] = Clients(values=factor * own, weights=weights)  # type: ignore[call-overload]
    return Paired(values=values, clients=clients)


def means(collected: Collected, configuration: Configuration, column: str, factor: float) -> dict[str, Interval]:
    """contender → mean and interval of `column` over the seeds that are done, for all but without_mean."""
    found = _paired(collected, configuration.id, column, factor)
    return {name: found.mean(name) for name in found.values}


def intervals(collected: Collected, configuration: Configuration) -> dict[str, Interval]:
    """contender → mean and interval of the setting's result, in its unit."""
    shown = unit(collected, configuration)
    return means(collected, configuration, shown.column, shown.scale)


def without_mean(collected: Collected, configuration: Configuration) -> set[str]:
    """Contenders of which a seed diverged, unless the fidelity switch diverged_runs drops such seeds.

    A mean over the seeds that survived would flatter a method that does not always survive.
    """
    if configuration.diverged_runs == "dropped":
        return set()
    return {name for name, counts in lost(collected, configuration).items() if "diverged" in counts}


def differences(collected: Collected, configuration: Configuration) -> dict[str, Interval]:
    """contender → paired difference to the reference variant; empty where the reference has no mean."""
    found = results(collected, configuration)
    if REFERENCE not in found.values:
        return {}
    paired = {name: found.difference(name, REFERENCE) for name in found.values if name != REFERENCE}
    return {name: difference for name, difference in paired.items() if difference is not None}


# --------------------------------------------------------------------------------------- main table


def lost(collected: Collected, configuration: Configuration) -> dict[str, dict[str, int]]:
    """contender → status other than done → number of seeds, plus `all`: how many seeds the suite asks for."""
    found: dict[str, dict[str, int]] = {}
    rows = collected.summary.filter(pl.col("setting") == configuration.id)
    for method, status in rows.select("contender", "status").iter_rows():
        counts = found.setdefault(method, {"all": 0})
        counts["all"] += 1
        if status != "done":
            counts[status] = counts.get(status, 0) + 1
    return found


def usual_seeds(collected: Collected) -> int:
    """The largest number of seeds that the suite asks of a cell; a cell says its own n where that differs."""
    seeds = collected.summary.group_by("setting", "contender").len()["len"]
    return int(seeds.max())  # type: ignore[arg-type]


def lost_note(counts: Mapping[str, int]) -> str:
    """`1/3 diverged`; empty when every seed is done."""
    return ", ".join(f"{count}/{counts['all']} {status}" for status, count in counts.items() if status != "all")


def marks(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> dict[str, str]:
    """The best and the second mean of the setting's result."""
    better = unit(collected, configuration).higher_is_better
    return best_two(results(collected, configuration), lost(collected, configuration), styles, better)


def best_two(
    found: Paired, lost: Mapping[str, Mapping[str, int]], styles: Mapping[str, Style], higher: bool
) -> dict[str, str]:
    """The best and the second mean of methods (no oracle, no control) without a diverged seed; ties share a mark.

    A mark needs seeds that tell its method apart from every method of a lower mean (Paired.apart), so that noise is not
    ranked; without a best there is no second. Empty while a run of any of them is missing or failed: the first of those
    that happen to be done is no winner.
    """
    counts = {name: count for name, count in lost.items() if styles[name].group == "method"}
    if any({"missing", "failed"} & count.keys() for count in counts.values()):
        return {}
    rivals = {
        name: round(float(np.mean(list(found.values[name].values()))), 9)
        for name, count in counts.items()
        if "diverged" not in count and name in found.values
    }
    levels = sorted(set(rivals.values()), reverse=higher)
    marked: dict[str, str] = {}
    for at, mark in enumerate(("best", "second")[: len(levels)] if len(levels) > 1 else ()):
        own = [name for name, mean in rivals.items() if mean == levels[at]]
        below = [name for name, mean in rivals.items() if mean in levels[at + 1 :]]
        if not all(found.apart(name, other) for name in own for other in below):
            break
        marked |= dict.fromkeys(own, mark)
    return marked


def main_cells(
    collected: Collected, styles: Mapping[str, Style], configuration: Configuration
) -> dict[str, dict[str, Cell]]:
    """contender → `value`, `top5`, `perplexity`, `official`, `difference` → cell. Every row has its diverged seeds."""
    shown, counts = unit(collected, configuration), lost(collected, configuration)
    reached, paired = intervals(collected, configuration), differences(collected, configuration)
    official = means(collected, configuration, "official_score", shown.scale)
    near = (
        means(collected, configuration, "test_top5_accuracy", shown.scale)
        if _many_classes(collected, configuration)
        else {}
    )
    perplexity = perplexities(collected, configuration)
    marked, usual = marks(collected, styles, configuration), usual_seeds(collected)
    cells: dict[str, dict[str, Cell]] = {}
    for name, count in counts.items():
        note = lost_note(count)
        if name not in reached:
            cells[name] = {"value": _no_mean(collected.values(configuration, shown.column).get(name, {}), note, shown)}
            continue
        mark = marked.get(name, "")
        cells[name] = {"value": interval_cell(reached[name], shown.digits, note=note, mark=mark, usual=usual)}
        if name in near:
            cells[name]["top5"] = interval_cell(near[name], shown.digits, usual=usual)
        if name in perplexity:
            cells[name]["perplexity"] = interval_cell(perplexity[name], 2, note=note, usual=usual)
        if name in official:
            cells[name]["official"] = interval_cell(official[name], shown.digits, note=note, usual=usual)
        if name in paired:
            cells[name]["difference"] = interval_cell(paired[name], shown.digits, sign=True, usual=usual)
        elif name == REFERENCE and len(reached) > 1:
            cells[name]["difference"] = Cell(text="reference")
    return cells


def _many_classes(collected: Collected, configuration: Configuration) -> bool:
    """Whether five classes are a small part of all, so that a hit among them says something."""
    classes = collected.summary.filter(pl.col("setting") == configuration.id)["classes"].max()
    return isinstance(classes, int) and classes >= MANY_CLASSES


def _no_mean(survivors: Mapping[int, float], note: str, shown: Unit) -> Cell:
    """What is lost instead of a mean, and beneath it the single seeds that are done."""
    if not survivors:
        return Cell(text=EMPTY.text, note=note)
    values = ", ".join(number(value, shown.digits) for value in scaled(survivors, shown.scale).values())
    return Cell(text=note, note=f"no mean; done: {values}")


# ------------------------------------------------------------------------------------ worst clients


@dataclass(frozen=True, kw_only=True)
class Worst:
    """A contender's worst decile or cluster, by seed and by chance: fractions, on the clients' own test rows."""

    method: str
    observed: dict[int, float]
    null: NullBand

    @property
    def below_chance(self) -> int:
        return sum(value < self.null.low for value in self.observed.values())


def worst(collected: Collected, configuration: Configuration, which: Literal["decile", "cluster"]) -> list[Worst]:
    """The last round's worst decile of clients, or worst true cluster, and its null.

    Only own rows will do: they are disjoint, so that clients' errors are independent under the null. A decile's
    accuracy is its clients' mean, a cluster's that of its clients' rows together. The null's common accuracy is
    Σ hits / Σ rows over the method's seeds, its row counts are those of the first seed.
    """
    rows = _done_clients(collected, configuration)
    if configuration.metric == "loss" or rows.is_empty():
        return []
    rows = rows.filter((pl.col("own_rows") > 0) & ~pl.col("contender").is_in(without_mean(collected, configuration)))
    by = rows.group_by("contender", "seed", "client" if which == "decile" else "cluster", maintain_order=True)
    hits = by.agg(pl.col("own_rows", "own_correct").sum())
    hits = hits.with_columns(accuracy=pl.col("own_correct") / pl.col("own_rows"))
    found = []
    for (name,), own in hits.group_by("contender", maintain_order=True):
        seeds = own.partition_by("seed", maintain_order=True)
        counts = seeds[0]["own_rows"].to_list()
        lowest = statistics.decile_count(len(counts)) if which == "decile" else 1
        observed = {one["seed"][0]: float(statistics.worst_mean(one["accuracy"], lowest)) for one in seeds}
        common = int(own["own_correct"].sum()) / int(own["own_rows"].sum())
        null = statistics.binomial_null(counts, common, lowest, draws=1000)
        found.append(Worst(method=str(name), observed=observed, null=null))
    return found


def worst_cell(found: Worst, usual: int) -> Cell:
    reached = interval([100 * value for value in found.observed.values()])
    band = f"chance {number(100 * found.null.low, 0)}\u2013{number(100 * found.null.high, 0)}"
    return interval_cell(reached, 1, note=band, usual=usual)


def _done_clients(collected: Collected, configuration: Configuration) -> pl.DataFrame:
    done = collected.summary.filter((pl.col("setting") == configuration.id) & (pl.col("status") == "done"))
    keys = ["setting", "contender", "seed"]
    if done.is_empty():
        return collected.clients.clear()
    return collected.clients.join(done.select(keys), on=keys, maintain_order="left")


# ------------------------------------------------------------------------------------ clients that join

JOINING = {"seen_cluster": "clients of a cluster that trained", "new_concept": "clients of a concept of no cluster"}
"""The kinds of unseen clients."""


def joined(collected: Collected, configuration: Configuration, kind: str) -> pl.DataFrame:
    """contender, x (samples), mean, low, high over the seeds, seeds (their values): accuracies of unseen clients of a
    kind in per cent, for all but without_mean."""
    rows = collected.unseen
    if rows.is_empty():
        return rows
    rows = rows.filter(
        (pl.col("setting") == configuration.id) & (pl.col("kind") == kind) & pl.col("accuracy").is_finite()
    )
    rows = rows.filter(~pl.col("contender").is_in(without_mean(collected, configuration)))
    value = 100 * pl.col("accuracy")
    return rows.group_by("contender", pl.col("n").cast(pl.Float64).alias("x"), maintain_order=True).agg(
        mean=value.mean().round(6), low=value.min().round(6), high=value.max().round(6), seeds=value
    )


# -------------------------------------------------------------------------------------------- frames


def curve(collected: Collected, configuration: Configuration, metric: str, x: str, factor: float) -> pl.DataFrame:
    """contender, x, mean, low, high, n over the seeds with a finite value at that round; times `factor`."""
    if collected.curves.is_empty():
        return pl.DataFrame()
    rows = collected.curves.filter(
        (pl.col("setting") == configuration.id) & (pl.col("metric") == metric) & pl.col("value").is_finite()
    )
    value = pl.col("value") * factor
    return (
        rows.group_by("contender", "round", maintain_order=True)
        .agg(x=pl.col(x).mean(), mean=value.mean(), low=value.min(), high=value.max(), n=pl.len())
        .sort("contender", "round")
        .select("contender", pl.col("x", "mean", "low", "high").cast(pl.Float64).round_sig_figs(6), "n")
    )


def spread(collected: Collected, configuration: Configuration, column: str, factor: float) -> pl.DataFrame:
    """One row per contender, seed and client: contender, seed, value (finite only)."""
    rows = _done_clients(collected, configuration)
    if rows.is_empty():
        return rows
    rows = rows.select("contender", "seed", value=pl.col(column) * factor)
    return rows.filter(pl.col("value").is_not_null() & pl.col("value").is_finite())


def route_weights(
    collected: Collected, configuration: Configuration, methods: list[str]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The last routes of each contender's first finished seed, long form for a heat map, and that seed.

    Clients are ordered by true cluster. Learned clusters carry arbitrary numbers: they are renumbered by the
    assignment to true clusters with the largest total weight.
    """
    rows = _done_clients(collected, configuration)
    if rows.is_empty():
        return rows, {}
    rows = rows.filter(pl.col("contender").is_in(methods) & pl.col("route").is_not_null())
    frames, seeds = [], {}
    for (name,), own in rows.group_by("contender", maintain_order=True):
        seeds[str(name)] = seed = own["seed"].min()
        own = own.filter(pl.col("seed") == seed).sort("cluster", "client")
        weights = np.array(own["route"].to_list())
        truth = own["cluster"].to_numpy()
        order = _matched(weights, truth)
        positions, clusters = np.indices(weights.shape)
        frames.append(
            pl.DataFrame({
                "contender": [str(name)] * weights.size, "position": positions.ravel(), "cluster": clusters.ravel(),
                "weight": weights[:, order].ravel(), "true_cluster": np.repeat(truth, weights.shape[1]),
            })
        )  # fmt: skip
    return (pl.concat(frames) if frames else pl.DataFrame()), seeds


def _matched(weights: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The learned clusters [C] in the order of the true ones that they match best: routes [K, C], true clusters [K]."""
    mass = np.zeros((max(int(truth.max()) + 1, weights.shape[1]), weights.shape[1]))
    np.add.at(mass, truth, weights)
    matched, learned = linear_sum_assignment(-mass)
    return learned[np.argsort(matched)]


def followed_routes(rows: pl.DataFrame, clients: int, rounds: int) -> tuple[pl.DataFrame, float]:
    """One run's routes over rounds, thinned to `rounds` of them and to the first `clients` of every true cluster, and
    the share of all clients whose heaviest cluster at the end is the one matched to their own.

    Frame: round, until (the next round shown), position (clients by true cluster), client, true_cluster, cluster
    (renumbered as the last routes match best), weight.
    """
    last = rows.filter(pl.col("round") == rows["round"].max())
    weights, truth = np.array(last["route"].to_list()), last["cluster"].to_numpy()
    number_of = np.argsort(_matched(weights, truth))
    right = float((number_of[weights.argmax(1)] == truth).mean())
    recorded = rows["round"].unique().sort().to_list()
    kept = sorted({recorded[at] for at in np.linspace(0, len(recorded) - 1, min(rounds, len(recorded))).astype(int)})
    until = dict(zip(kept, [*kept[1:], 2 * kept[-1] - kept[max(0, len(kept) - 2)]], strict=True))
    order = last.sort("cluster", "client").group_by("cluster", maintain_order=True).head(clients)["client"].to_list()
    place = {client: at for at, client in enumerate(order)}
    shown = rows.filter(pl.col("client").is_in(order) & pl.col("round").is_in(kept))
    return shown.select(
        "round", pl.col("round").replace_strict(until).alias("until"),
        pl.col("client").replace_strict(place).alias("position"), "client", pl.col("cluster").alias("true_cluster"),
        pl.col("route").list.arg_max().cast(pl.Int64).replace_strict(dict(enumerate(number_of.tolist()))).alias("cluster"),
        pl.col("route").list.max().round(3).alias("weight"),
    ).sort("position", "round"), right  # fmt: skip

"""Rank methods over the tasks of suites: mean ranks, their range when each task is left out, and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from floral.core.intervals import Interval
from floral.report.collect import Collected
from floral.report.compared import Configuration, MethodRow
from floral.report.statistics import means_without_one, rank_table
from floral.report.style import Style
from floral.report.summarise import (
    best_of,
    first_configurations,
    result_unit,
    results,
    results_on_all,
    seed_counts,
    seed_note,
)

Values = Literal["default", "tuned", "both"]
"""Which methods a board ranks: those with default values, those with tuned values, or both together."""
TITLES: dict[Values, str] = {
    "default": "Default values", "tuned": "Tuned values", "both": "Default and tuned values together",
}  # fmt: skip
COSTS = {"bytes": "Bytes", "client_passes": "Forward-backward passes", "seconds_total": "Seconds"}
"""Columns of summary.parquet that are added up over tasks, and their titles."""
MIN_METHODS = 2
"""A board with fewer methods ranks nothing and is left out."""

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A ranked method: one row of a leaderboard. The mappings have one value per task, by the configuration's id."""

    style: Style
    variant: str
    tuned: bool
    position: int
    """1 for the smallest mean rank. Equal mean ranks share the smaller position."""
    positions: Range
    """The smallest and the largest position when each task is left out."""
    mean_rank: float
    mean_ranks: Range
    """The smallest and the largest mean rank when each task is left out."""
    ranks: Mapping[str, float]
    results: Mapping[str, Interval]
    best: frozenset[str]
    """The configurations on which the method cannot be told from the best one. Empty where all methods are so."""
    costs: Mapping[str, float | None]
    """One run on every task, added up. None if a cost is unknown for some task."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """The ranking of all methods that have a result on every task, and the reasons why others are not ranked."""

    values: Values
    configurations: tuple[Configuration, ...]
    entries: tuple[Entry, ...]
    unranked: tuple[tuple[Style, str], ...]

    @property
    def title(self) -> str:
        return TITLES[self.values]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The ranked methods of one family: how many they are, and the best of them."""

    name: str
    methods: int
    best: Entry
    mean_ranks: Range
    """The smallest and the largest mean rank in this family, over all tasks."""


def boards(collected: Collected, styles: Mapping[str, Style]) -> list[Board]:
    """Return the leaderboards of these runs: for default values, for tuned values, and for both together.

    Tuned and default values are ranked together only if some task has both with the same settings. If a task is run
    with several settings, the first of them counts. Methods that know the true clusters and controls are not ranked.
    """
    methods = [method for method in collected.methods if styles[method.id].group == "method"]
    by_values: dict[Values, list[MethodRow]] = {
        "default": [method for method in methods if not method.tuned],
        "tuned": [method for method in methods if method.tuned],
    }
    by_board = {}
    for values, selected in by_values.items():
        ids = {method.id for method in selected}
        run = [item for item in collected.configurations if ids & _run_on(collected, item)]
        by_board[values] = _board(collected, styles, values, first_configurations(run), selected)
    shared = {item.id for item in by_board["default"].configurations} & {i.id for i in by_board["tuned"].configurations}
    together = [item for item in collected.configurations if item.id in shared]
    ids = {method for item in together for method in _run_on(collected, item)}
    selected = [method for method in methods if method.id in ids]
    by_board["both"] = _board(collected, styles, "both", together, selected)
    return [board for board in by_board.values() if len(board.entries) >= MIN_METHODS]


def families(board: Board) -> list[Family]:
    """Return the families of a board, ordered by the mean rank of their best methods."""
    by_family: dict[str, list[Entry]] = {}
    for entry in board.entries:  # in the order of mean ranks
        by_family.setdefault(entry.style.family, []).append(entry)
    return [
        Family(
            name=name, methods=len(entries), best=entries[0],
            mean_ranks=(entries[0].mean_rank, entries[-1].mean_rank),
        )
        for name, entries in by_family.items()
    ]  # fmt: skip


def _run_on(collected: Collected, configuration: Configuration) -> set[str]:
    return {method.id for method in collected.methods_on(configuration)}


def _board(
    collected: Collected,
    styles: Mapping[str, Style],
    values: Values,
    configurations: Sequence[Configuration],
    methods: Sequence[MethodRow],
) -> Board:
    reasons = {method.id: reason for method in methods if (reason := _unranked(collected, configurations, method.id))}
    ranked = [method for method in methods if method.id not in reasons]
    table = results_on_all(collected, configurations, [method.id for method in ranked])
    ranks = rank_table(table, [result_unit(item).higher_is_better for item in configurations]) if table else {}
    means = {method: sum(values) / len(values) for method, values in ranks.items()}
    without_one = means_without_one(ranks) or [means]
    position, positions = _positions(means), [_positions(without) for without in without_one]
    by_task = [results(collected, item) for item in configurations]
    best = [
        best_of(paired, collected, styles, item).marked for paired, item in zip(by_task, configurations, strict=True)
    ]
    entries = [
        Entry(
            style=styles[method.id], variant=method.variant.name, tuned=method.tuned,
            position=position[method.id], positions=_range([of_one[method.id] for of_one in positions]),
            mean_rank=means[method.id], mean_ranks=_range([of_one[method.id] for of_one in without_one]),
            ranks={item.id: rank for item, rank in zip(configurations, ranks[method.id], strict=True)},
            results={item.id: paired.mean(method.id) for item, paired in zip(configurations, by_task, strict=True)},
            best=frozenset(item.id for item, ids in zip(configurations, best, strict=True) if method.id in ids),
            costs=_costs(collected, configurations, method.id),
        )
        for method in ranked
    ]  # fmt: skip
    return Board(
        values=values,
        configurations=tuple(configurations),
        entries=tuple(sorted(entries, key=lambda entry: (entry.mean_rank, entry.style.title))),
        unranked=tuple((styles[method], reason) for method, reason in reasons.items()),
    )


def _unranked(collected: Collected, configurations: Sequence[Configuration], method: str) -> str:
    """Return why a method is not ranked, such as `digits_rotate: not run`. The text is empty if it is ranked."""
    reasons = []
    for configuration in configurations:
        counts = seed_counts(collected, configuration).get(method)
        if counts is None:
            reasons.append(f"{configuration.title}: not run")
        elif method not in results(collected, configuration).values or {"missing", "failed"} & counts.keys():
            reasons.append(f"{configuration.title}: {seed_note(counts)}")
    return "; ".join(reasons)


def _positions(means: Mapping[str, float]) -> dict[str, int]:
    """Return the position of each method: 1 plus the number of methods with a smaller mean rank."""
    rounded = {method: round(mean, 9) for method, mean in means.items()}  # equal means can differ in their last digit
    return {method: 1 + sum(rank < mean for rank in rounded.values()) for method, mean in rounded.items()}


def _range(values: Sequence[float]) -> Range:
    return min(values), max(values)


def _costs(collected: Collected, configurations: Sequence[Configuration], method: str) -> dict[str, float | None]:
    """Return the costs of one run on every task, added up over tasks. The costs of a task are means over its seeds."""
    ids = [configuration.id for configuration in configurations]
    rows = collected.summary.filter((pl.col("method_id") == method) & pl.col("configuration").is_in(ids))
    by_task = rows.group_by("configuration").agg(pl.col(list(COSTS)).mean())
    sums: dict[str, Any] = by_task.select(
        pl.when(pl.col(name).is_null().any()).then(None).otherwise(pl.col(name).sum()).alias(name) for name in COSTS
    ).row(0, named=True)
    return sums

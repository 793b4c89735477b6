"""The top of the page: an answer for each task in words, and the numbers of every method on every task."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from floral.core.intervals import Interval, student_quantile
from floral.report import statistics
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.comparison import MIN_SEEDS_FOR_BEST
from floral.report.description import changed_values
from floral.report.sentences import count
from floral.report.style import Style
from floral.report.summarise import (
    REFERENCE,
    Unit,
    best,
    candidates,
    comparisons,
    intervals,
    result_unit,
    results,
    seed_counts,
    seed_note,
    usual_seeds,
)
from floral.report.tables import EMPTY, THIN, amount, interval_cell, interval_text, number

NARROW = "\u202f"
"""The narrow no-break space."""
MAX_NAMED_METHODS = 3
"""With more methods in a set, the others are counted and not named."""
NEAR_POINTS, NEAR_RATIO = 2.0, 1.1
"""A method is near the best one if its mean is at most so many points lower, or its error at most so many times it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the runs of one task say, in names. A method is named by its id."""

    configuration: Configuration
    named: list[tuple[str, str]]
    """Methods that are not shown to be worse than the best mean, with their means as text: the best ones first."""
    near: list[str]
    """The ids of all these methods that are near the best mean (see `_is_near`), best mean first."""
    far: list[str]
    """The ids of those that are further away. Their results vary so much that the test does not exclude them."""
    claim: str
    """The end of the sentence that begins with the methods in `named`. Empty if there are several of them."""
    note: str
    """How many methods are shown to be worse, and the number of seeds."""
    reference: str
    """How far FLoRAL 1 % is from the best mean."""
    cheapest: tuple[str, str] | None
    """The method near the best one that sends the fewest bytes, and a text with its mean and its bytes."""


def answers(collected: Collected, styles: Mapping[str, Style]) -> list[Answer]:
    """Return one answer for each task with its settings."""
    return [answer(collected, styles, configuration) for configuration in collected.configurations]


def answer(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> Answer:
    unit, means = result_unit(configuration), intervals(collected, configuration)
    ranked = _by_mean(collected, styles, configuration)
    members = set(best(collected, styles, configuration).members)
    near, far = _split(collected, styles, configuration)
    named = near if members else ranked
    return Answer(
        configuration=configuration,
        named=[(method, value_text(means[method], unit)) for method in named[:MAX_NAMED_METHODS]],
        near=near,
        far=far,
        claim=_claim(members, ranked),
        note=_certainty(collected, configuration, members, ranked),
        reference=_reference(collected, configuration, ranked, members),
        cheapest=_cheapest(collected, configuration, ranked),
    )


def near_the_best(configurations: Iterable[Configuration]) -> str:
    """Return which methods count as near the best one on these tasks, such as `within 2 points of the best`."""
    is_error = {result_unit(configuration).logarithmic for configuration in configurations}
    points, ratio = f"within {NEAR_POINTS:.0f} points of the best", f"within {NEAR_RATIO} times the smallest error"
    return points if is_error == {False} else ratio if is_error == {True} else f"{points}, or {ratio}"


def value_text(interval: Interval, unit: Unit) -> str:
    return f"{number(interval.mean, unit.digits)}{' %' if unit.scale == 100 else ''}"


def _by_mean(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> list[str]:
    """Return the methods among which the best is looked for, best mean first."""
    unit, means = result_unit(configuration), intervals(collected, configuration)
    ranked = candidates(collected, styles, configuration)
    return sorted(ranked, key=lambda method: means[method].mean, reverse=unit.higher_is_better)


def _split(
    collected: Collected, styles: Mapping[str, Style], configuration: Configuration
) -> tuple[list[str], list[str]]:
    """Return the methods that are not shown to be worse than the best mean: those near it, and those further away."""
    unit, means = result_unit(configuration), intervals(collected, configuration)
    ranked = _by_mean(collected, styles, configuration)
    best_set = best(collected, styles, configuration).members
    members = [method for method in ranked if method in best_set]
    near = [method for method in members if _is_near(means[method].mean, means[ranked[0]].mean, unit)]
    return near, members[len(near) :]


def _is_near(mean: float, top: float, unit: Unit) -> bool:
    """Return whether a mean is at most NEAR_POINTS below the best one; of errors, at most NEAR_RATIO times it."""
    return mean <= NEAR_RATIO * top if unit.logarithmic else mean >= top - NEAR_POINTS


def _claim(members: Collection[str], ranked: list[str]) -> str:
    if not ranked:
        return "not decided"
    if not members:
        return "have the best means: not decided" if len(ranked) > 1 else "is the only method"
    return "is the best" if len(members) == 1 else ""


def _certainty(collected: Collected, configuration: Configuration, members: Collection[str], ranked: list[str]) -> str:
    """Return how many methods are shown to be worse, and the number of seeds."""
    if not ranked:
        return "runs of these methods are missing or failed"
    seeds = results(collected, configuration).mean(ranked[0]).n
    number_of_seeds = count(seeds, "seed")
    if not members:
        useless = ": the intervals are nearly useless; use at least 3" if seeds == 2 else ""
        return (
            f"{number_of_seeds}{useless}; a set of best methods needs two methods with {MIN_SEEDS_FOR_BEST} seeds each"
        )
    worse = len(ranked) - len(members)
    decided = f"{worse} of {len(ranked)} are shown to be worse" if worse else "no method is shown to be worse"
    return f"{decided}; {number_of_seeds}"


def _reference(collected: Collected, configuration: Configuration, ranked: list[str], members: Collection[str]) -> str:
    means, unit = intervals(collected, configuration), result_unit(configuration)
    if REFERENCE not in means:
        return "no mean"
    value = value_text(means[REFERENCE], unit)
    if not ranked or ranked[0] == REFERENCE:
        return f"{value}, the best mean" if ranked else value
    first, second = (REFERENCE, ranked[0]) if unit.logarithmic else (ranked[0], REFERENCE)
    difference = results(collected, configuration).difference(first, second)
    if difference is None:
        return value
    cell = interval_cell(difference, unit.digits, sign=True, usual=difference.n).text.lstrip("+")
    text = f"{value}; {cell} {'times the smallest error' if unit.logarithmic else 'points lower'}"
    if not members:
        return text
    if REFERENCE not in members:
        return f"{text}: worse"
    return f"{text}: {'not decided after Holm' if difference.is_decided else 'not decided'}"


def _cheapest(collected: Collected, configuration: Configuration, ranked: list[str]) -> tuple[str, str] | None:
    """Return the method near the best mean that sends the fewest bytes, and a text with its mean and its bytes."""
    unit, means, sent = result_unit(configuration), intervals(collected, configuration), _costs(collected, "bytes")
    near = [method for method in ranked if _is_near(means[method].mean, means[ranked[0]].mean, unit)]
    costs = {method: sent[configuration.id, method] for method in near if (configuration.id, method) in sent}
    if not costs:
        return None
    method = min(costs, key=lambda method: costs[method])  # of several, the best mean
    written = amount(costs[method]).replace(THIN, NARROW)
    size = f"{written}{'' if written[-1].isalpha() else NARROW}B" if costs[method] else "sends nothing"
    return method, f"{value_text(means[method], unit)}, {size}"


def _costs(collected: Collected, column: str) -> dict[tuple[str, str], float]:
    """Return the mean cost of a run, as (configuration, method) → cost. `column` is `bytes` or `client_passes`."""
    means = collected.summary.filter(pl.col("status") == "done").group_by("configuration", "method_id")
    rows = means.agg(pl.col(column).mean()).drop_nulls(column).iter_rows()
    return {(configuration, method): value for configuration, method, value in rows}


# --------------------------------------------------------------------------------- numbers for the page


def overview(collected: Collected, styles: Mapping[str, Style]) -> dict[str, Any]:
    """Return what the page's table of methods × tasks and its figure of costs show, in values that JSON has.

    A cell has the texts and the numbers of one method on one task. `mean`, `low` and `high` are the result and its 95 %
    interval; `difference` is the one to FLoRAL 1 %, with p of the paired t-test after Holm's correction (None with one
    seed); `rank` is among the methods that can be best. `seeds` has the result of each run, from which the page's
    script compares any two methods as floral/report/paired.py does. `quantiles` are those of Student's distribution for
    a 95 % interval, by the number of seeds. `near` and `far` are those of the task's answer. The script puts the
    methods in the order of their mean ranks.
    """
    cells = {item.id: _cells(collected, styles, item) for item in collected.configurations}
    families = list(dict.fromkeys(style.group_title for style in styles.values()))
    methods = [
        {
            "id": style.id, "title": style.title, "short": style.short, "family": style.group_title,
            "colour": style.colour, "dashed": style.dashed, "ranked": style.group == "method",
            "cells": {task: of_task[style.id] for task, of_task in cells.items() if style.id in of_task},
        }
        for style in styles.values()
    ]  # fmt: skip
    return {
        "reference": REFERENCE if REFERENCE in styles else None,
        "families": families,
        "quantiles": {n: student_quantile(0.975, n - 1) for n in range(2, usual_seeds(collected) + 1)},
        "methods": methods,
        "tasks": [
            {
                "id": item.id, "title": item.title, "label": item.label, "result": (unit := result_unit(item)).title,
                "difference": f"{unit.minus(styles[REFERENCE].short)} ({unit.worse})" if REFERENCE in styles else "",
                "log": unit.logarithmic, "digits": unit.digits, "near": near, "far": far,
            }
            for item in collected.configurations
            for near, far in [_split(collected, styles, item)]
        ],
    }  # fmt: skip


def _cells(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> dict[str, Any]:
    """Return the cells of one task, as method → name → text or number."""
    unit, means = result_unit(configuration), intervals(collected, configuration)
    compared, counts = comparisons(collected, configuration), seed_counts(collected, configuration)
    costs = {name: _costs(collected, name) for name in ("bytes", "client_passes")}
    ranked = [method for method in means if styles[method].group == "method"]
    ranks = statistics.rank_table({method: [means[method].mean] for method in ranked}, [unit.higher_is_better])
    bold = best(collected, styles, configuration).marked
    cells: dict[str, Any] = {}
    for method, of_method in counts.items():
        note = seed_note(of_method)
        cell: dict[str, Any] = {"text": note or EMPTY.text, "note": note, **_runs(collected, configuration, method)}
        if (mean := means.get(method)) is not None:
            text = number(mean.mean, unit.digits)
            cell |= {"mean": mean.mean, "text": text, "interval": interval_text(mean, unit.digits), "n": mean.n}
            cell |= {} if mean.low is None else {"low": mean.low, "high": mean.high}
            cell |= {"best": True} if method in bold else {}
        if (item := compared.get(method)) is not None:
            difference = interval_cell(item.difference, unit.digits, sign=True, usual=item.difference.n)
            short = number(item.difference.mean, unit.digits, sign=not unit.logarithmic)
            cell["difference"] = {"value": item.difference.mean, "text": short, "interval": difference.text}
            cell["difference"] |= {"p": item.p}
        if method in ranks:
            (cell["rank"],) = ranks[method]
        for name, values in costs.items():
            if (configuration.id, method) in values:
                cell[name] = values[configuration.id, method]
        cells[method] = cell
    return cells


def _runs(collected: Collected, configuration: Configuration, method: str) -> dict[str, Any]:
    """Return the runs of one method on one task, and the settings in which they differ from the method's file.

    A run is a list: seed, result (None without one), state, and the name that `floral show` takes.
    """
    unit = result_unit(configuration)
    rows = collected.summary.filter((pl.col("configuration") == configuration.id) & (pl.col("method_id") == method))
    columns = ("seed", unit.column, "status", "task", "variant", "hash8")
    seeds = [
        [seed, unit.scale * value if value is not None and math.isfinite(value) else None, status,
         f"{task}/{variant}/seed{seed}-{hash8}"]
        for seed, value, status, task, variant, hash8 in rows.select(columns).iter_rows()
    ]  # fmt: skip
    changes = json.loads(rows["method_changes"][0])
    rounded = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in changes.items()}
    return {"seeds": seeds, "settings": changed_values(rounded)}

"""The top of the page: an answer for each task in words, and the numbers of every method on every task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from floral.core.intervals import Interval
from floral.report import statistics
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.comparison import MIN_SEEDS_FOR_BEST, Member
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
    """What the runs of one task say, in names."""

    configuration: Configuration
    best: list[str]
    """Titles of the methods that cannot be told from the best one, best mean first: at most MAX_NAMED_METHODS."""
    members: list[str]
    """The ids of all these methods. Empty if no such set can be named."""
    unnamed: int
    """How many methods of the set are not named in `best`."""
    claim: str
    """The end of the sentence that begins with the methods in `best`."""
    note: str
    """How certain the claim is."""
    reference: str
    """How far FLoRAL 1 % is from the best mean."""
    cheapest: str
    """The method near the best one that sends the fewest bytes."""


def answers(collected: Collected, styles: Mapping[str, Style]) -> list[Answer]:
    """Return one answer for each task with its settings."""
    return [answer(collected, styles, configuration) for configuration in collected.configurations]


def answer(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> Answer:
    unit, means = result_unit(configuration), intervals(collected, configuration)
    ranked = candidates(collected, styles, configuration)
    ranked.sort(key=lambda method: means[method].mean, reverse=unit.higher_is_better)
    best_set = best(collected, styles, configuration).members
    members = list(best_set)
    named = members or ranked[:1]
    names = [f"{styles[method].title} ({value_text(means[method], unit)})" for method in named[:1]]
    names += [styles[method].title for method in named[1:MAX_NAMED_METHODS]]
    return Answer(
        configuration=configuration,
        best=names,
        members=members,
        unnamed=len(named[MAX_NAMED_METHODS:]),
        claim=_claim(members, ranked),
        note=_certainty(collected, styles, configuration, best_set, ranked),
        reference=_reference(collected, configuration, ranked, members),
        cheapest=_cheapest(collected, styles, configuration, ranked),
    )


def near_the_best(configurations: Iterable[Configuration]) -> str:
    """Return which methods count as near the best one on these tasks, such as `within 2 points`."""
    is_error = {result_unit(configuration).logarithmic for configuration in configurations}
    points, ratio = f"within {NEAR_POINTS:.0f} points", f"within {NEAR_RATIO} times the best error"
    return points if is_error == {False} else ratio if is_error == {True} else f"{points}, or {ratio}"


def value_text(interval: Interval, unit: Unit) -> str:
    return f"{number(interval.mean, unit.digits)}{' %' if unit.scale == 100 else ''}"


def _claim(members: list[str], ranked: list[str]) -> str:
    if not ranked:
        return "not decided"
    if not members:
        return "has the best mean"
    return "is the best" if len(members) == 1 else "cannot be told apart"


def _certainty(
    collected: Collected, styles: Mapping[str, Style], configuration: Configuration, members: Mapping[str, Member],
    ranked: list[str],
) -> str:  # fmt: skip
    """Return how many methods are worse, the number of seeds, and how much worse a member of the set may be."""
    if not ranked:
        return "runs of these methods are missing or failed"
    paired = results(collected, configuration)
    seeds = paired.mean(ranked[0]).n
    number_of_seeds = count(seeds, "seed")
    if not members:
        useless = ": the intervals are nearly useless; use at least 3" if seeds == 2 else ""
        return (
            f"{number_of_seeds}{useless}; a set of best methods needs two methods with {MIN_SEEDS_FOR_BEST} seeds each"
        )
    worse = len(ranked) - len(members)
    decided = f"{worse} of {len(ranked)} are worse; " if worse else ""
    return f"{decided}{number_of_seeds}{_bound(members, styles, result_unit(configuration))}"


def _bound(members: Mapping[str, Member], styles: Mapping[str, Style], unit: Unit) -> str:
    """Return which method of the set may be worse than its strongest rival by most, and by how much."""
    if len(members) < 2:
        return ""
    method = max(members, key=lambda method: members[method].may_be_worse)
    most = (
        f"{number(members[method].may_be_worse, unit.digits)} {'times as bad' if unit.logarithmic else 'points worse'}"
    )
    return f"; {styles[method].title} varies most: it may be {most}"


def _reference(collected: Collected, configuration: Configuration, ranked: list[str], members: list[str]) -> str:
    means, unit = intervals(collected, configuration), result_unit(configuration)
    if REFERENCE not in means:
        return "no mean"
    value = value_text(means[REFERENCE], unit)
    if not ranked or ranked[0] == REFERENCE:
        return f"{value}, the best mean" if ranked else value
    difference = results(collected, configuration).difference(REFERENCE, ranked[0])
    if difference is None:
        return value
    cell = interval_cell(difference, unit.digits, sign=True, usual=difference.n).text
    text = f"{value}; {cell} {'times' if unit.logarithmic else 'points'}"
    if not members:
        return text
    if REFERENCE not in members:
        return f"{text}: worse"
    return f"{text}: {'open after correction' if difference.is_decided else 'open'}"


def _cheapest(
    collected: Collected, styles: Mapping[str, Style], configuration: Configuration, ranked: list[str]
) -> str:
    """Return the method near the best mean that sends the fewest bytes, with its mean and its bytes."""
    unit, means, sent = result_unit(configuration), intervals(collected, configuration), _costs(collected, "bytes")
    if not ranked:
        return ""
    top = means[ranked[0]].mean

    def is_near(mean: float) -> bool:
        return mean <= NEAR_RATIO * top if unit.logarithmic else mean >= top - NEAR_POINTS

    near = [(bytes_, method) for method in ranked if (bytes_ := sent.get((configuration.id, method))) is not None]
    near = [(bytes_, method) for bytes_, method in near if is_near(means[method].mean)]
    if not near:
        return ""
    bytes_, method = min(near, key=lambda item: (item[0], ranked.index(item[1])))  # of several, the best mean
    written = amount(bytes_).replace(THIN, NARROW)
    size = f"{written}{'' if written[-1].isalpha() else NARROW}B" if bytes_ else "sends nothing"
    return f"{styles[method].title} ({value_text(means[method], unit)}, {size})"


def _costs(collected: Collected, column: str) -> dict[tuple[str, str], float]:
    """Return the mean cost of a run, as (configuration, method) → cost. `column` is `bytes` or `client_passes`."""
    means = collected.summary.filter(pl.col("status") == "done").group_by("configuration", "method_id")
    rows = means.agg(pl.col(column).mean()).drop_nulls(column).iter_rows()
    return {(configuration, method): value for configuration, method, value in rows}


# --------------------------------------------------------------------------------- numbers for the page


def overview(collected: Collected, styles: Mapping[str, Style]) -> dict[str, Any]:
    """Return what the page's table of methods × tasks and its figure of costs show, in values that JSON has.

    A cell has the texts and the numbers of one method on one task. `mean`, `low` and `high` are the result and its 95 %
    interval; `difference` is the one to FLoRAL 1 %, with the verdict; `rank` is among the methods that can be best. The
    page's script puts the methods in the order of their mean ranks.
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
        "methods": methods,
        "tasks": [
            {
                "id": item.id, "title": item.title, "label": item.label, "result": (unit := result_unit(item)).title,
                "difference": unit.minus(styles[REFERENCE].short) if REFERENCE in styles else "",
                "log": unit.logarithmic,
                "best": sorted(best(collected, styles, item).members),
            }
            for item in collected.configurations
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
            cell["difference"] |= {"verdict": item.verdict}
        if method in ranks:
            (cell["rank"],) = ranks[method]
        for name, values in costs.items():
            if (configuration.id, method) in values:
                cell[name] = values[configuration.id, method]
        cells[method] = cell
    return cells


def _runs(collected: Collected, configuration: Configuration, method: str) -> dict[str, Any]:
    """Return the runs of one method on one task, and the settings in which they differ from the method's file.

    A run is a list: seed, result, state, and the name that `floral show` takes.
    """
    unit = result_unit(configuration)
    rows = collected.summary.filter((pl.col("configuration") == configuration.id) & (pl.col("method_id") == method))
    columns = ("seed", unit.column, "status", "task", "variant", "hash8")
    seeds = [
        [seed, "" if value is None else number(unit.scale * value, unit.digits), status,
         f"{task}/{variant}/seed{seed}-{hash8}"]
        for seed, value, status, task, variant, hash8 in rows.select(columns).iter_rows()
    ]  # fmt: skip
    changes = json.loads(rows["method_changes"][0])
    rounded = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in changes.items()}
    return {"seeds": seeds, "settings": changed_values(rounded)}

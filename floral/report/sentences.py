"""Sentences at the top of the page: numbers of runs, best methods, differences, and recovered clusters."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from floral.config import catalogue
from floral.core.intervals import Interval
from floral.report.collect import Collected
from floral.report.degenerate import equal_methods
from floral.report.style import Style
from floral.report.summarise import REFERENCE, differences, intervals, marks, result_unit
from floral.report.tables import MINUS, PLUS_MINUS, number

MAX_NAMED_CONFIGURATIONS = 6
"""With more configurations, the leading methods are not named one by one."""


def suite(name: str) -> dict[str, str]:
    """Return the name, title and description of the suite. They come from its file in config/suites."""
    file = catalogue.suite(name)
    return {"name": file.name, "title": file.title, "about": file.about}


def state(collected: Collected) -> dict[str, int]:
    """Return how many runs have which status (such as `done`), and the number of all runs under the key `all`."""
    counts = dict(collected.summary["status"].value_counts(sort=True).iter_rows())
    return {
        "all": collected.summary.height,
        **{key: counts.get(key, 0) for key in ("done", "diverged", "failed", "missing")},
    }


def verdict(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """Return sentences that summarise the suite: number of runs, differences to FLoRAL 1 %, and recovered clusters."""
    counts = state(collected)
    seeds = collected.summary.group_by("configuration", "method_id").agg(pl.col("seed").n_unique())["seed"]
    number_of_seeds = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    sentences = [
        f"{count(len(collected.methods), 'method variant')} on {tasks(collected)}, "
        f"{number_of_seeds} seed{'s' if seeds.max() != 1 else ''} each: {counts['all']} runs, {states(counts)}."
    ]
    sentences += _against_reference(collected, styles)
    sentences += _recovery(collected, styles)
    return sentences


def degenerate(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """Return one sentence for each method that gives the same results as another method on a task.

    The sentences warn readers not to count the same result twice.
    """
    sentences = []
    for configuration in collected.configurations:
        for method, variant, reason in equal_methods(collected, configuration):
            same = catalogue.variant(variant).title.replace(" ", "\u00a0")
            sentences.append(
                f"{configuration.title}: {_title(styles[method])} is identical to {same} here, because {reason}."
            )
    return sentences


def leaders(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """Return the best two methods of each task, as texts of the form `task: method (mean), then method (mean)`.

    Only methods that the main table marks as best or second best are named. The list is empty if there are too many
    tasks (more than MAX_NAMED_CONFIGURATIONS).
    """
    lines = []
    few = len(collected.configurations) <= MAX_NAMED_CONFIGURATIONS
    for configuration in collected.configurations if few else ():
        marked = marks(collected, styles, configuration)
        means, unit = intervals(collected, configuration), result_unit(configuration)
        percent = " %" if unit.scale == 100 else ""
        places = []
        for place in ("best", "second"):
            methods = [method for method, mark in marked.items() if mark == place]
            if methods:
                mean = _mean_text(means[methods[0]], unit.digits, percent)
                places.append(f"{' and '.join(_title(styles[method]) for method in methods)} ({mean})")
        if places:
            lines.append(f"{configuration.title}: {', then '.join(places)}")
    return lines


def count(number_: int, noun: str) -> str:
    return f"{number_} {noun}{'' if number_ == 1 else 's'}"


def tasks(collected: Collected) -> str:
    """Return the number of tasks as text, such as `2 tasks`, or `2 tasks in 3 configurations` if settings vary."""
    number_of_tasks = len({configuration.task.name for configuration in collected.configurations})
    configurations = len(collected.configurations)
    text = count(number_of_tasks, "task")
    return text + (f" in {configurations} configurations" if configurations > number_of_tasks else "")


def _title(style: Style) -> str:
    return style.title.replace(" ", "\u00a0")


def states(counts: Mapping[str, int]) -> str:
    """Return the numbers of runs by status, such as `12 finished, 1 diverged`. Numbers that are 0 are left out."""
    words = {"done": "finished", "diverged": "diverged", "failed": "failed", "missing": "not run yet"}
    return ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])


def _mean_text(interval: Interval, digits: int | None, unit: str) -> str:
    if interval.half_width is None:
        return f"{number(interval.mean, digits)}{unit}, one seed"
    return f"{number(interval.mean, digits)} {PLUS_MINUS} {number(interval.half_width, digits)}{unit}"


def _against_reference(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    if REFERENCE not in styles:
        return []
    better = worse = undecided = without_interval = 0
    for configuration in collected.configurations:
        sign = 1 if result_unit(configuration).higher_is_better else -1
        for method, difference in differences(collected, configuration).items():
            if styles[method].group != "method":
                continue
            if difference.low is None:
                without_interval += 1
            elif not difference.excludes_zero:
                undecided += 1
            elif sign * difference.mean > 0:
                better += 1
            else:
                worse += 1
    total = better + worse + undecided
    reference = _title(styles[REFERENCE])
    if not total:
        sentence = f"There are no paired intervals to {reference}: they require two seeds that both methods have."
        return [sentence] if without_interval else []
    return [
        f"Paired 95 % intervals of method {MINUS} {reference} ({total}, not corrected for multiple comparisons): "
        f"{better} show that the method is better, {worse} that it is worse, {undecided} contain zero."
    ]


def _recovery(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    rows = collected.summary.filter((pl.col("status") == "done") & pl.col("ari").is_not_null())
    learned = [method for method, style in styles.items() if style.group == "method"]
    means = rows.filter(pl.col("method_id").is_in(learned)).group_by("method_id").agg(pl.col("ari").mean())
    if means.is_empty():
        return []
    by_method = dict(means.select("method_id", "ari").iter_rows())
    values = ", ".join(f"{_title(styles[n])} {number(by_method[n], 2)}" for n in styles if n in by_method)
    measure = "adjusted Rand index, mean over runs; 1 is perfect, 0 is chance"
    return [f"Agreement of learned routes with the true clusters ({measure}): {values}."]

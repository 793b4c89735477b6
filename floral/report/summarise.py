"""Summarise the results of each method on a task: means, paired differences, numbers of seeds, best methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import polars as pl

from floral.core.intervals import Interval, t_interval
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.comparison import Comparison, Member, best_methods, compare
from floral.report.paired import Paired
from floral.report.style import REFERENCE, Style


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The unit in which the results of a task are shown: per cent for accuracies, none for losses."""

    column: str
    title: str
    difference: str
    """Unit of differences: points of accuracy. Errors have ratios instead."""
    scale: float
    digits: int | None
    """Decimals of an accuracy. None: three significant digits, because errors span many powers of ten."""
    higher_is_better: bool

    @property
    def logarithmic(self) -> bool:
        """Whether means and comparisons are computed from logarithms: those of errors are."""
        return not self.higher_is_better

    def minus(self, reference: str) -> str:
        """Return the title of a column with differences to a reference, or with ratios to it."""
        return f"divided by {reference}" if self.logarithmic else f"minus {reference}, {self.difference}"

    @property
    def worse(self) -> str:
        """Which differences, or ratios, are those of a worse method."""
        return "above 1: worse" if self.logarithmic else "negative: worse"


def result_unit(configuration: Configuration) -> Unit:
    if configuration.metric == "accuracy":
        title = accuracy_title(configuration)
        return Unit(
            column="test_accuracy", title=title, difference="points", scale=100, digits=1, higher_is_better=True
        )
    return Unit(column="test_loss", title="Test MSE", difference="ratio", scale=1, digits=None, higher_is_better=False)


def accuracy_title(configuration: Configuration) -> str:
    """Return the title `Accuracy, %`, or for text `Accuracy per character, %` or `Accuracy per token, %`."""
    return f"Accuracy per {configuration.task.per}, %" if configuration.task.per else "Accuracy, %"


def scaled(by_seed: Mapping[int, float], factor: float) -> dict[int, float]:
    return {seed: factor * value for seed, value in by_seed.items()}


# ------------------------------------------------------------------------------ means and differences


def results(collected: Collected, configuration: Configuration) -> Paired:
    """Return the results of all methods on this task, in the unit of the report (see `Unit`).

    Methods with a diverged seed can be left out (see `methods_without_mean`).
    """
    unit = result_unit(configuration)
    return _paired(collected, configuration, unit.column, unit.scale)


@lru_cache(maxsize=256)
def _comparisons(collected: Collected, configuration_id: str) -> dict[str, Comparison]:
    configuration = next(item for item in collected.configurations if item.id == configuration_id)
    return compare(results(collected, configuration), REFERENCE, result_unit(configuration).higher_is_better)


def comparisons(collected: Collected, configuration: Configuration) -> dict[str, Comparison]:
    """Return how each method compares with FLoRAL 1 % on this task.

    The result is {} if FLoRAL 1 % has no mean, because it was not run or a seed diverged.
    """
    return _comparisons(collected, configuration.id)


def _paired(collected: Collected, configuration: Configuration, column: str, factor: float) -> Paired:
    """Return the values of a column of the frame `summary`, times `factor`, by method and seed."""
    excluded = methods_without_mean(collected, configuration)
    by_method = collected.values(configuration, column).items()
    values = {method: scaled(by_seed, factor) for method, by_seed in by_method if method not in excluded}
    return Paired(values=values, logarithmic=result_unit(configuration).logarithmic)


def done_clients(collected: Collected, configuration: Configuration) -> pl.DataFrame:
    """Return the rows of `collected.clients` for those runs of this task that did not diverge."""
    done = collected.summary.filter((pl.col("configuration") == configuration.id) & (pl.col("status") == "done"))
    keys = ["configuration", "method_id", "seed"]
    if done.is_empty():
        return collected.clients.clear()
    return collected.clients.join(done.select(keys), on=keys, maintain_order="left")


def means(collected: Collected, configuration: Configuration, column: str, factor: float) -> dict[str, Interval]:
    """Return each method's mean over seeds of a column of the frame `summary`, times `factor`, with its interval.

    Methods with a diverged seed can be left out (see `methods_without_mean`).
    """
    paired = _paired(collected, configuration, column, factor)
    return {method: paired.mean(method) for method in paired.values}


def intervals(collected: Collected, configuration: Configuration) -> dict[str, Interval]:
    """Return each method's mean result over seeds with its interval, in the unit of the report (see `Unit`)."""
    unit = result_unit(configuration)
    return means(collected, configuration, unit.column, unit.scale)


def first_configurations(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Return the first configuration of each task. A configuration is a task with its settings."""
    firsts: dict[str, Configuration] = {}
    for configuration in configurations:
        firsts.setdefault(configuration.task.name, configuration)
    return list(firsts.values())


def results_on_all(
    collected: Collected, configurations: Iterable[Configuration], methods: Iterable[str]
) -> dict[str, list[float]]:
    """Return each method's mean results, one per configuration. Methods without a result on some of them are left out.

    The results are in the unit of the report (see `Unit`).
    """
    by_task = [results(collected, configuration) for configuration in configurations]
    return {
        method: [paired.mean(method).mean for paired in by_task]
        for method in methods
        if all(method in paired.values for paired in by_task)
    }


def perplexities(collected: Collected, configuration: Configuration) -> dict[str, Interval]:
    """Return each method's perplexity exp(mean test loss) with its interval. If the data are not text, return {}."""
    if configuration.task.per is None:
        return {}
    excluded = methods_without_mean(collected, configuration)
    return {
        method: t_interval(list(by_seed.values())).exponential()
        for method, by_seed in collected.values(configuration, "test_loss").items()
        if method not in excluded
    }


def differences(collected: Collected, configuration: Configuration) -> dict[str, Interval]:
    """Return the difference of each method to FLoRAL 1 %, paired by seed; a ratio if results are errors.

    The result is {} if FLoRAL 1 % has no mean, because it was not run or a seed diverged.
    """
    return {method: item.difference for method, item in comparisons(collected, configuration).items()}


# ------------------------------------------------------------------------------------------ seed counts


def seed_counts(collected: Collected, configuration: Configuration) -> dict[str, dict[str, int]]:
    """Return for each method the number of its seeds, and how many of them diverged, failed or are missing.

    The form is method → status → number. The key `all` has the number of all seeds.
    """
    by_method: dict[str, dict[str, int]] = {}
    rows = collected.summary.filter(pl.col("configuration") == configuration.id)
    for method, status in rows.select("method_id", "status").iter_rows():
        counts = by_method.setdefault(method, {"all": 0})
        counts["all"] += 1
        if status != "done":
            counts[status] = counts.get(status, 0) + 1
    return by_method


def seed_note(counts: Mapping[str, int]) -> str:
    """Return a note on one method's seeds that are not done, such as `1/3 diverged`. It is empty if all are done."""
    return ", ".join(f"{count}/{counts['all']} {status}" for status, count in counts.items() if status != "all")


def usual_seeds(collected: Collected) -> int:
    """Return the largest number of seeds that any method has on any task.

    The page states this number once. A table cell states its own number of seeds only if it differs from this number,
    or is 1.
    """
    seeds = collected.summary.group_by("configuration", "method_id").len()["len"]
    return int(seeds.max())  # type: ignore[arg-type]


def methods_without_mean(collected: Collected, configuration: Configuration) -> set[str]:
    """Return the methods for which the report shows no mean, because a seed diverged.

    A mean over the remaining seeds would favour a method that sometimes diverges. If the setting `diverged_runs` is
    `dropped`, as in the published table, means are over the remaining seeds, and the returned set is empty.
    """
    if configuration.diverged_runs == "dropped":
        return set()
    return {method for method, counts in seed_counts(collected, configuration).items() if "diverged" in counts}


# ---------------------------------------------------------------------------------------- best methods


@dataclass(frozen=True, kw_only=True)
class Best:
    """The methods that cannot be told from the best one, and the number of methods among which it was looked for."""

    members: Mapping[str, Member]
    candidates: int

    @property
    def marked(self) -> set[str]:
        """The methods to print in bold: the members, or none if all candidates are members."""
        return set(self.members) if len(self.members) < self.candidates else set()


def best(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> Best:
    """Return the methods that cannot be told from the best one on this task."""
    return best_of(results(collected, configuration), collected, styles, configuration)


def best_of(paired: Paired, collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> Best:
    """Return the methods that cannot be told from the best one by other values on this task (see `best_methods`)."""
    of_task = _candidates(paired, collected, styles, configuration)
    members = best_methods(paired, of_task, result_unit(configuration).higher_is_better)
    return Best(members=members, candidates=len(of_task))


def candidates(collected: Collected, styles: Mapping[str, Style], configuration: Configuration) -> list[str]:
    """Return the methods among which the best is looked for on this task."""
    return _candidates(results(collected, configuration), collected, styles, configuration)


def _candidates(
    paired: Paired, collected: Collected, styles: Mapping[str, Style], configuration: Configuration
) -> list[str]:
    """Return the methods among which the best is looked for, by other values on this task.

    Oracles, controls and methods with a diverged seed are left out. The list is empty while a run of these methods is
    missing or failed, because that run could be the best.
    """
    all_counts = seed_counts(collected, configuration).items()
    counts = {method: count for method, count in all_counts if styles[method].group == "method"}
    if any({"missing", "failed"} & count.keys() for count in counts.values()):
        return []
    return [method for method, count in counts.items() if "diverged" not in count and method in paired.values]

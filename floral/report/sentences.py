"""Sentences at the top of the page: numbers of runs, best methods, differences, and recovered clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl

from floral.config import catalogue
from floral.config.schema.data import Synthetic
from floral.config.schema.task import Task
from floral.report.collect import Collected
from floral.report.degenerate import equal_methods
from floral.report.style import Style
from floral.report.summarise import REFERENCE, comparisons, intervals, result_unit
from floral.report.tables import number

MAX_NAMED_CONFIGURATIONS = 6
"""With more configurations, no sentence names them one by one."""


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


def counts(collected: Collected) -> str:
    """Return how many methods, tasks, seeds and runs the suite has, in one sentence."""
    by_status = state(collected)
    seeds = collected.summary.group_by("configuration", "method_id").agg(pl.col("seed").n_unique())["seed"]
    number_of_seeds = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    return (
        f"{count(len(collected.methods), 'method variant')} on {tasks(collected)}, "
        f"{number_of_seeds} seed{'s' if seeds.max() != 1 else ''} each: {by_status['all']} runs, {states(by_status)}."
    )


def degenerate(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """Return one sentence for each group of methods that give the same results as another method.

    The sentences warn readers not to count the same result twice. Tasks with the same group and the same reason share a
    sentence.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for configuration in collected.configurations:
        twins: dict[tuple[str, str], list[str]] = {}
        for method, variant, reason in equal_methods(collected, configuration):
            same = catalogue.variant(variant).title.replace(" ", "\u00a0")
            twins.setdefault((same, reason), []).append(_title(styles[method]))
        for (same, reason), titles in twins.items():
            verb = "are" if len(titles) > 1 else "is"
            groups.setdefault((listed(titles), f"{verb} identical to {same}", reason), []).append(configuration.title)
    return [
        f"{'; '.join(tasks_)}: {subject} {what} here, because {reason}."
        for (subject, what, reason), tasks_ in groups.items()
    ]


def listed(names: Sequence[str]) -> str:
    """Return names as text, such as `A, B and C`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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


def against_reference(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """Return sentences that count the methods that are better or worse than FLoRAL 1 %, over all tasks.

    Methods that train one model for all clients are counted apart on tasks where such a model cannot fit all clusters.
    """
    if REFERENCE not in styles:
        return []
    verdicts: Counter[str] = Counter()
    counted_apart: Counter[str] = Counter()
    surviving: Counter[str] = Counter()
    one_model = {method.id for method in collected.methods if method.variant.global_only}
    for configuration in collected.configurations:
        for method, item in comparisons(collected, configuration).items():
            if styles[method].group != "method":
                continue
            if method in one_model and has_conflicting_clusters(configuration.task):
                counted_apart[item.verdict] += 1
                continue
            verdicts[item.verdict] += 1
            if item.survives:
                surviving[item.verdict] += 1
    reference = _title(styles[REFERENCE])
    sentences = []
    if total := verdicts.total() - verdicts["one seed"]:
        sentences.append(
            f"{count(total, 'paired comparison')} of a method with {reference}: {_decisions(verdicts)}, by the 95 % "
            f"intervals. After Holm's correction in each task: better in {surviving['better']}, "
            f"worse in {surviving['worse']}."
        )
    if total := counted_apart.total() - counted_apart["one seed"]:
        sentences.append(
            f"Counted apart: {count(total, 'comparison')} of methods with one model for all clients, on tasks whose "
            f"clusters give the same input different labels: {_decisions(counted_apart)}."
        )
    if not sentences and verdicts["one seed"] + counted_apart["one seed"]:
        return [f"There are no paired intervals to {reference}: they require two seeds that both methods have."]
    return sentences


def _decisions(verdicts: Mapping[str, int]) -> str:
    undecided = verdicts["open"] + verdicts["equal"]
    return f"the method is better in {verdicts['better']}, worse in {verdicts['worse']}, undecided in {undecided}"


def has_conflicting_clusters(task: Task) -> bool:
    """Return whether the clusters of a task give the same input different labels, so that one model cannot fit all."""
    return task.concepts > 1 and (
        isinstance(task.data, Synthetic) or task.shift.kind in ("label_shift", "label_permutation")
    )


def recovery(collected: Collected, styles: Mapping[str, Style]) -> str:
    """Return how well the routes of FLoRAL 1 % find the true clusters, as the adjusted Rand index of each task."""
    rows = collected.summary.filter((pl.col("status") == "done") & pl.col("ari").is_not_null())
    texts = []
    for configuration in collected.configurations:
        values = rows.filter((pl.col("configuration") == configuration.id) & (pl.col("method_id") == REFERENCE))["ari"]
        if len(values) and configuration.task.concepts > 1:
            texts.append(f"{configuration.id} {number(float(values.mean()), 2)}")  # type: ignore[arg-type]
    if not texts or len(texts) > MAX_NAMED_CONFIGURATIONS:
        return ""
    return f"Adjusted Rand index of {_title(styles[REFERENCE])} (1 is perfect, 0 is chance): {', '.join(texts)}."


def leaders(collected: Collected, styles: Mapping[str, Style]) -> str:
    """Return the methods with the highest mean of a task, each with the number of such tasks."""
    tops: Counter[str] = Counter()
    for configuration in collected.configurations:
        means = intervals(collected, configuration)
        sign = 1 if result_unit(configuration).higher_is_better else -1
        learned = [method for method in means if styles[method].group == "method"]
        if learned:
            tops[max(learned, key=lambda method: sign * means[method].mean)] += 1
    return ", ".join(f"{_title(styles[method])} ({count(n, 'task')})" for method, n in tops.most_common())

"""Group the runs that differ only in the seed, and average the results of each group.

MLflow shows each group as a parent run.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floral.config.run import Run
from floral.runs.state import failure, is_finished

SUMMARY_VALUES = (
    "test_accuracy", "test_loss", "official_score", "own_test_accuracy", "worst_cluster_accuracy",
    "worst_decile_accuracy", "excess_risk", "bytes",
)  # fmt: skip
"""The values of summary.json that are averaged over seeds."""
ERRORS = ("test_loss", "official_score", "excess_risk")
"""Values of summary.json that are errors in regression."""
CURVES = ("test.accuracy", "test.loss", "validation.loss", "train.loss")
"""The curves (split.metric) that are averaged over seeds."""


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """The runs of one task × variant, one run per seed of the suite. The runs differ only in the seed."""

    key: str
    runs: tuple[Run, ...]

    @property
    def job_key(self) -> str:
        return f"mean/{self.key}"

    @property
    def name(self) -> str:
        return f"{self.runs[0].variant.name} on {self.runs[0].task.name}"

    def finished(self, results: Path) -> bool:
        """Return whether the runs of all seeds are finished."""
        return all(is_finished(results / run.folder) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class SeedMeans:
    """Means over the finished runs of a SeedGroup.

    `seeds` says in words how many seeds are done, diverged and failed. `summaries` has the content of summary.json of
    each finished run. `values` maps the names of MLflow metrics to numbers, such as the mean test accuracy and the ends
    of its interval. `curves` has one entry (curve, round, mean over seeds) for each point. The name of a curve is
    split.metric, such as test.loss.
    """

    seeds: str
    summaries: list[dict[str, Any]]
    values: dict[str, float]
    curves: list[tuple[str, int, float]]


def group_by_seed(runs: Iterable[Run]) -> dict[str, SeedGroup]:
    """Group the runs that differ only in the seed, and return a mapping from each group's key to its SeedGroup.

    The groups are in the order of their first runs.
    """
    groups: dict[str, dict[Path, Run]] = {}
    for run in runs:
        groups.setdefault(str(run.siblings), {})[run.folder] = run
    return {key: SeedGroup(key=key, runs=tuple(members.values())) for key, members in groups.items()}


def seed_means(group: SeedGroup, results: Path) -> SeedMeans:
    """Return means and 95 % intervals over the seeds that are done. A single seed has no interval.

    If a seed diverged, there is no mean, unless the runs have `diverged_runs: dropped` (see config/fidelity.yaml). Then
    the mean is taken over the other seeds. The report treats diverged seeds in the same way. The result always has the
    numbers of expected, done, diverged and failed seeds.

    Means of errors (regression) are geometric, as in the report.
    """
    summaries = {run.folder: _summary(results / run.folder) for run in group.runs}
    done = {folder: summary for folder, summary in summaries.items() if summary and summary["status"] == "done"}
    counts = Counter(summary["status"] if summary else "unfinished" for summary in summaries.values())
    failed = sum(failure(results / folder) is not None for folder, summary in summaries.items() if not summary)
    values: dict[str, float] = {
        "seeds/expected": len(summaries), "seeds/done": counts["done"], "seeds/diverged": counts["diverged"],
        "seeds/failed": failed,
    }  # fmt: skip
    averaged = {} if counts["diverged"] and group.runs[0].fidelity["diverged_runs"] == "reported" else done
    for name in SUMMARY_VALUES:
        is_error = group.runs[0].task.loss == "mse" and name in ERRORS
        values |= _mean_with_interval(name, [summary.get(name) for summary in averaged.values()], is_error)
    words = [f"{counts['done']} of {len(summaries)} seeds"]
    words += [f"{count} {state}" for state, count in (("diverged", counts["diverged"]), ("failed", failed)) if count]
    return SeedMeans(
        seeds=", ".join(words),
        summaries=[summary for summary in summaries.values() if summary],
        values=values,
        curves=list(_mean_curves((results / folder for folder in averaged), group.runs[0].task.loss == "mse")),
    )


def _summary(folder: Path) -> dict[str, Any] | None:
    """Return the content of summary.json if the run is finished, or else None."""
    return json.loads((folder / "summary.json").read_text()) if is_finished(folder) else None


def _mean_with_interval(name: str, values: list[float | None], is_error: bool) -> dict[str, float]:
    """Return the mean of a value over seeds, under the name mean/<name>; the geometric mean of an error.

    With several seeds, the result also has the ends of the interval, mean_low/<name> and mean_high/<name>. The result
    is empty if the value of a seed is missing, NaN or infinite.
    """
    from floral.core.intervals import mean_interval

    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        return {}
    over_seeds = mean_interval(numbers, is_error)
    ends = {"mean": over_seeds.mean, "mean_low": over_seeds.low, "mean_high": over_seeds.high}
    return {f"{end}/{name}": value for end, value in ends.items() if value is not None}


def _mean_curves(folders: Iterable[Path], of_errors: bool) -> Iterator[tuple[str, int, float]]:
    """Yield the points of the mean curves as (curve, round, mean over seeds), such as ("test.loss", 20, 0.31).

    The curves are those in CURVES. A round is left out unless the curve has a finite value for every seed. Means of
    errors (regression) are geometric.
    """
    import polars as pl

    columns = ["split", "metric", "round", "value"]
    tables = [pl.read_parquet(folder / "metrics.parquet", columns=columns) for folder in folders]
    if not tables:
        return
    value = pl.col("value").sort()
    mean = (
        pl.concat(tables)
        .with_columns(key=pl.concat_str("split", pl.lit("."), "metric"))
        .filter(pl.col("key").is_in(CURVES) & pl.col("value").is_finite())
        .group_by("key", "round")
        .agg(value.log().mean().exp() if of_errors else value.mean(), seeds=pl.len())
        .filter(pl.col("seeds") == len(tables))
        .sort("key", "round")
    )
    yield from mean.select("key", "round", "value").iter_rows()

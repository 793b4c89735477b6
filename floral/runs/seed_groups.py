"""Group runs that differ only in their seed, and average their results. MLflow shows each group as a parent run."""

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
CURVES = ("test.accuracy", "test.loss", "validation.loss", "train.loss")
"""The curves (split.metric) that are averaged over seeds."""


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """The runs of one task × variant, one per seed of the suite; all their other values are equal."""

    key: str
    runs: tuple[Run, ...]

    @property
    def job_key(self) -> str:
        return f"mean/{self.key}"

    @property
    def name(self) -> str:
        return f"{self.runs[0].variant.name} on {self.runs[0].task.name}"

    def finished(self, results: Path) -> bool:
        """Whether the runs of all seeds are finished."""
        return all(is_finished(results / run.folder) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class SeedMeans:
    """Means over the finished runs of a SeedGroup.

    seeds: the counts in words. summaries: summary.json of the finished runs. values: name → number after the last
    round. curves: (split.metric, round, mean over seeds).
    """

    seeds: str
    summaries: list[dict[str, Any]]
    values: dict[str, float]
    curves: list[tuple[str, int, float]]


def group_by_seed(runs: Iterable[Run]) -> dict[str, SeedGroup]:
    """Group runs by all values except the seed; the keys keep the order of the first runs."""
    groups: dict[str, dict[Path, Run]] = {}
    for run in runs:
        groups.setdefault(str(run.siblings), {})[run.folder] = run
    return {key: SeedGroup(key=key, runs=tuple(members.values())) for key, members in groups.items()}


def seed_means(group: SeedGroup, results: Path) -> SeedMeans:
    """Means and 95 % intervals over the seeds that are done; a single seed has no interval.

    As in the report, there is no mean if a seed diverged, unless the fidelity drops diverged runs. The report's
    intervals also resample the clients where there are 5 seeds; these intervals do not. The counts of expected, done,
    diverged and failed seeds are always included.
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
        values |= _mean_with_interval(name, [summary.get(name) for summary in averaged.values()])
    words = [f"{counts['done']} of {len(summaries)} seeds"]
    words += [f"{count} {state}" for state, count in (("diverged", counts["diverged"]), ("failed", failed)) if count]
    return SeedMeans(
        seeds=", ".join(words),
        summaries=[summary for summary in summaries.values() if summary],
        values=values,
        curves=list(_mean_curves(results / folder for folder in averaged)),
    )


def _summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a finished run, else None."""
    return json.loads((folder / "summary.json").read_text()) if is_finished(folder) else None


def _mean_with_interval(name: str, values: list[float | None]) -> dict[str, float]:
    """mean/<name>, and for several seeds mean_low/<name> and mean_high/<name>; empty if a seed has no finite value."""
    from floral.core.intervals import interval

    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        return {}
    over_seeds = interval(numbers)
    ends = {"mean": over_seeds.mean, "mean_low": over_seeds.low, "mean_high": over_seeds.high}
    return {f"{end}/{name}": value for end, value in ends.items() if value is not None}


def _mean_curves(folders: Iterable[Path]) -> Iterator[tuple[str, int, float]]:
    """The mean of CURVES at each round that all seeds have evaluated."""
    import polars as pl

    columns = ["split", "metric", "round", "value"]
    tables = [pl.read_parquet(folder / "metrics.parquet", columns=columns) for folder in folders]
    if not tables:
        return
    mean = (
        pl.concat(tables)
        .with_columns(key=pl.concat_str("split", pl.lit("."), "metric"))
        .filter(pl.col("key").is_in(CURVES) & pl.col("value").is_finite())
        .group_by("key", "round")
        .agg(pl.col("value").sort().mean(), seeds=pl.len())
        .filter(pl.col("seeds") == len(tables))
        .sort("key", "round")
    )
    yield from mean.select("key", "round", "value").iter_rows()

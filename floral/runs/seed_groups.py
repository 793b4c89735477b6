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
from floral.runs.quantities import ERRORS, IN_SUMMARY, named_costs
from floral.runs.state import failure, is_finished

CURVES = ("own_test/accuracy", "own_test/loss", "validation/loss", "train/loss", "route/ari")
"""The curves that are averaged over seeds, by their names in MLflow."""


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """The runs of one task × variant, one run per seed of the suite. The runs differ only in the seed."""

    key: str
    runs: tuple[Run, ...]

    @property
    def job_key(self) -> str:
        return f"mean/{self.key}"

    def finished(self, results: Path) -> bool:
        """Return whether the runs of all seeds are finished."""
        return all(is_finished(results / run.folder) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class SeedMeans:
    """Means over the finished runs of a SeedGroup.

    `seeds` says in words how many seeds are done, diverged and failed. `summaries` has the content of summary.json of
    each finished run. `values` maps the names of MLflow metrics to numbers, such as the mean test accuracy and the ends
    of its interval. `curves` has one entry (name in MLflow, round, mean over seeds) for each point.
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
    is_regression = group.runs[0].task.loss == "mse"
    curves = list(_mean_curves((results / folder for folder in averaged), is_regression))
    for key, name in IN_SUMMARY.items():
        numbers = [summary.get(key) for summary in averaged.values()]
        values |= _mean_with_interval(name, numbers, is_regression and key in ERRORS)
    values |= _mean_costs([results / folder for folder in averaged])
    for name, _, _ in curves:  # MLflow shows the last value of a curve
        values.pop(name, None)
    words = [f"{counts['done']} of {len(summaries)} seeds"]
    words += [f"{count} {state}" for state, count in (("diverged", counts["diverged"]), ("failed", failed)) if count]
    return SeedMeans(
        seeds=", ".join(words),
        summaries=[summary for summary in summaries.values() if summary],
        values=values,
        curves=curves,
    )


def _summary(folder: Path) -> dict[str, Any] | None:
    """Return the content of summary.json if the run is finished, or else None."""
    return json.loads((folder / "summary.json").read_text()) if is_finished(folder) else None


def _mean_with_interval(name: str, values: list[float | None], is_error: bool) -> dict[str, float]:
    """Return the mean of a value over seeds, under its name; the geometric mean of an error.

    With several seeds, the result also has the ends of the interval, low/<name> and high/<name>. The result is
    empty if the value of a seed is missing, NaN or infinite.
    """
    from floral.core.intervals import mean_interval

    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        return {}
    over_seeds = mean_interval(numbers, is_error)
    ends = {name: over_seeds.mean, f"low/{name}": over_seeds.low, f"high/{name}": over_seeds.high}
    return {key: value for key, value in ends.items() if value is not None}


def _mean_costs(folders: list[Path]) -> dict[str, float]:
    """Return the mean of each number of costs.json over runs. Numbers that some run does not have are left out."""
    costs = [named_costs(json.loads((folder / "costs.json").read_text())) for folder in folders]
    shared = [name for name in costs[0] if all(name in of_run for of_run in costs)] if costs else []
    return {name: math.fsum(of_run[name] for of_run in costs) / len(costs) for name in shared}


def _mean_curves(folders: Iterable[Path], of_errors: bool) -> Iterator[tuple[str, int, float]]:
    """Yield the points of the mean curves as (name, round, mean over seeds), such as ("own_test/loss", 20, 0.31).

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
        .with_columns(key=pl.concat_str(pl.col("split").replace({"test": "own_test"}), pl.lit("/"), "metric"))
        .filter(pl.col("key").is_in(CURVES) & pl.col("value").is_finite())
        .group_by("key", "round")
        .agg(value.log().mean().exp() if of_errors else value.mean(), seeds=pl.len())
        .filter(pl.col("seeds") == len(tables))
        .sort("key", "round")
    )
    yield from mean.select("key", "round", "value").iter_rows()

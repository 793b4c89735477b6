"""Runs that differ in their seed alone: what they share, and their means. What MLflow's parent runs say."""

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

MAIN = (
    "test_accuracy", "test_loss", "official_score", "own_test_accuracy", "worst_cluster_accuracy",
    "worst_decile_accuracy", "excess_risk", "bytes",
)  # fmt: skip
"""The values of summary.json whose mean over seeds is taken."""
CURVES = ("test.accuracy", "test.loss", "validation.loss", "train.loss")
"""split.metric whose mean learning curve is taken."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A task × variant with all its values, and its runs: one for each seed that the suite asks for."""

    key: str
    runs: tuple[Run, ...]

    @property
    def job_key(self) -> str:
        return f"mean/{self.key}"

    @property
    def name(self) -> str:
        return f"{self.runs[0].variant.name} on {self.runs[0].task.name}"

    def finished(self, results: Path) -> bool:
        """Whether every seed has its result."""
        return all(is_finished(results / run.folder) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the seeds of a Compared say together, as far as they are finished.

    values: name → number, after the last round; MLflow shows those of a prefix together. curves: (split.metric, round,
    mean over seeds). summaries: of the seeds that are finished.
    """

    seeds: str
    summaries: list[dict[str, Any]]
    values: dict[str, float]
    curves: list[tuple[str, int, float]]


def compared(runs: Iterable[Run]) -> dict[str, Compared]:
    """Runs by what they share, in the order of their first: the key is the same for all seeds of a task × variant."""
    found: dict[str, dict[Path, Run]] = {}
    for run in runs:
        found.setdefault(str(run.siblings), {})[run.folder] = run
    return {key: Compared(key=key, runs=tuple(members.values())) for key, members in found.items()}


def means(one: Compared, results: Path) -> Means:
    """Means and 95 % intervals over the seeds that are done; one seed gives no interval.

    As in the report, a method of which a seed diverged has no mean, unless the fidelity drops such seeds; its intervals
    resample the clients too where there are 5 seeds, and these do not. How many seeds are expected, done, diverged and
    failed is always said.
    """
    found = {run.folder: _summary(results / run.folder) for run in one.runs}
    done = {folder: summary for folder, summary in found.items() if summary and summary["status"] == "done"}
    counts = Counter(summary["status"] if summary else "unfinished" for summary in found.values())
    failed = sum(failure(results / folder) is not None for folder, summary in found.items() if not summary)
    values: dict[str, float] = {
        "seeds/expected": len(found), "seeds/done": counts["done"], "seeds/diverged": counts["diverged"],
        "seeds/failed": failed,
    }  # fmt: skip
    meant = {} if counts["diverged"] and one.runs[0].fidelity["diverged_runs"] == "reported" else done
    for name in MAIN:
        values |= _over_seeds(name, [summary.get(name) for summary in meant.values()])
    said = [f"{counts['done']} of {len(found)} seeds"]
    said += [f"{count} {what}" for what, count in (("diverged", counts["diverged"]), ("failed", failed)) if count]
    curves = list(_mean_curves(results / folder for folder in meant))
    summaries = [summary for summary in found.values() if summary]
    return Means(seeds=", ".join(said), summaries=summaries, values=values, curves=curves)


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


def _over_seeds(name: str, values: list[float | None]) -> dict[str, float]:
    """mean/<name>, and its interval's mean_low/ and mean_high/<name> where there are several seeds; nothing where a
    seed has no number."""
    from floral.core.intervals import interval

    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        return {}
    found = interval(numbers)
    ends = {"mean": found.mean, "mean_low": found.low, "mean_high": found.high}
    return {f"{end}/{name}": value for end, value in ends.items() if value is not None}


def _mean_curves(folders: Iterable[Path]) -> Iterator[tuple[str, int, float]]:
    """The mean of CURVES at each round which every seed has evaluated."""
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

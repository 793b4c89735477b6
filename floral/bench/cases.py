"""The fixed set of `floral bench report`: what each row compares, and the limit that it is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from floral.bench import timing
from floral.bench.contenders import EngineRounds, FloorRounds, run_of
from floral.config.run import Run

Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How everything is carried out: folder of the results, backend, threads, and how many rounds are timed."""

    results: Path
    backend: str = "auto"
    threads: int = 1
    rounds: int | None = None

    def engine(self, run: Run) -> EngineRounds:
        return EngineRounds.of(run, self.results, "cpu", self.backend, self.threads)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a `measure` of a task and variant (to another one, `to`), and the limit of its ratio."""

    name: str
    limit: float
    direction: Direction = "max"
    task: str
    variant: str
    to: str = "floor"
    measure: Callable[[Case, Setting], dict[str, Any]]
    change: Mapping[str, Any] = field(default_factory=dict)
    """Values of the task that are replaced."""

    @property
    def runs(self) -> list[Run]:
        variants = [self.variant] if self.to == "floor" else [self.variant, self.to]
        return [run_of(self.task, variant, self.change) for variant in variants]

    def row(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {"case": self.name, "ratio": None, "limit": self.limit, "direction": self.direction, **found}


def to_floor(case: Case, setting: Setting) -> dict[str, Any]:
    """Seconds per round to those of the floor."""
    (run,) = case.runs
    return compared(setting.engine(run), FloorRounds.of(run, setting.results, setting.threads), setting)


def to_variant(case: Case, setting: Setting) -> dict[str, Any]:
    """Seconds per round to those of another variant on the same task."""
    ours, other = (setting.engine(run) for run in case.runs)
    return compared(ours, other, setting)


def to_every_cluster(case: Case, setting: Setting) -> dict[str, Any]:
    """Seconds per round to C times those of another variant: C models for one."""
    ours, other = (setting.engine(run) for run in case.runs)
    return compared(ours, other, setting, times=case.runs[0].task.clusters)


def rounds_per_second(case: Case, setting: Setting) -> dict[str, Any]:
    """Rounds per second: no ratio, but the row's number has its place."""
    ours = setting.engine(case.runs[0])
    rates = 1 / timing.alone(ours, setting.rounds)
    return {
        "ratio": float(np.median(rates)),
        "spread": timing.interquartile(rates),
        "seconds": [float(np.median(1 / rates))],
        "executions": [str(ours)],
    }


def compared(ours: EngineRounds, other: EngineRounds | FloorRounds, setting: Setting, times: int = 1) -> dict[str, Any]:
    """Median ratio over interleaved pairs of blocks, its spread, and the seconds per round of both."""
    pairs = timing.alternate(ours, other, setting.rounds)
    pairs = timing.Pairs(pairs.first, times * pairs.second)
    return {
        "ratio": pairs.ratio,
        "spread": pairs.spread,
        "seconds": list(pairs.seconds),
        "executions": [str(ours), str(other)],
    }


CASES = (
    Case(
        name="fedavg to the floor, mnist_rotate",
        limit=1.5,
        task="mnist_rotate",
        variant="fedavg",
        measure=to_floor,
    ),
    Case(
        name="fedavg to the floor, cifar10_rotate_reduced without augmentation",
        limit=1.15,
        task="cifar10_rotate_reduced",
        variant="fedavg",
        measure=to_floor,
        change={"augmentation": "none"},
    ),
    Case(
        name="floral_1 to fedavg, cifar100_reduced",
        limit=1.6,
        task="cifar100_reduced",
        variant="floral_1",
        to="fedavg",
        measure=to_variant,
    ),
    Case(
        name="floral_10 to fedavg, cifar100_reduced",
        limit=2.2,
        task="cifar100_reduced",
        variant="floral_10",
        to="fedavg",
        measure=to_variant,
    ),
    Case(
        name="floral_1 to fedavg, mnist_rotate_reduced",
        limit=1.6,
        task="mnist_rotate_reduced",
        variant="floral_1",
        to="fedavg",
        measure=to_variant,
    ),
    Case(
        name="ensemble to C × fedavg, mnist_rotate_reduced",
        limit=1.1,
        task="mnist_rotate_reduced",
        variant="ensemble",
        to="fedavg",
        measure=to_every_cluster,
    ),
    Case(
        name="rounds per second, floral_1, synthetic_linear",
        limit=300,
        direction="min",
        task="synthetic_linear",
        variant="floral_1",
        measure=rounds_per_second,
    ),
)

SCALE_CASE, SCALE_LIMIT = "seconds per round at K = 100,000 to K = 1,000, M = 30", 1.1


def scale_row(scale: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the largest ratio among the methods, with those of all."""
    ratios = scale["ratios"]
    worst = max(ratios, key=lambda variant: ratios[variant]["ratio"])
    return {
        "case": SCALE_CASE,
        "ratio": ratios[worst]["ratio"],
        "limit": SCALE_LIMIT,
        "direction": "max",
        "spread": ratios[worst]["spread"],
        "seconds": ratios[worst]["seconds"],
        "by_variant": {variant: found["ratio"] for variant, found in ratios.items()},
    }


def holds(row: Mapping[str, Any]) -> bool:
    """Whether a row is within its limit."""
    return row["ratio"] <= row["limit"] if row["direction"] == "max" else row["ratio"] >= row["limit"]


def runs(cases: Iterable[Case]) -> list[Run]:
    return [run for case in cases for run in case.runs]

"""The cases that `floral bench report` measures: what each case compares, and which results are allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from floral.bench import timing
from floral.bench.peft import PACKAGES, PeftRounds
from floral.bench.prepare import benchmark_run, missing_files
from floral.bench.processes import in_new_process, memory_bytes
from floral.bench.rounds import BaselineRounds, EngineRounds
from floral.config import networks
from floral.config.run import Run
from floral.core.process import configure_process

Direction = Literal["max", "min"]
BASELINE = "baseline"
"""As `Case.reference`: compare with the PyTorch baseline instead of another variant."""
PEFT = "peft"
"""As `Case.reference`: compare with a bare loop of the packages peft and transformers."""
UNCHANGED = "unchanged"
"""As `Case.reference`: compare with the same variant on the task as it is."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a measurement: backend, threads, number of timed rounds, and the folder `results`.

    This folder holds the data sets and partitions.
    """

    results: Path
    backend: str = "auto"
    threads: int = 1
    rounds: int | None = None

    def engine(self, run: Run, threads: int | None = None) -> EngineRounds:
        """Return a callable that trains this run with the engine on the CPU: a call with n trains n rounds.

        `threads` is the number of threads if it differs from the option.
        """
        return EngineRounds.of(run, self.results, "cpu", self.backend, threads or self.threads)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A measurement of the benchmark: a variant on a task, the `reference` to compare with, and the limit of the
    result.
    """

    name: str
    limit: float
    direction: Direction = "max"
    """Whether the limit is the largest or the smallest accepted value."""
    task: str
    variant: str
    reference: str = BASELINE
    """Another variant, BASELINE, PEFT or UNCHANGED."""
    measure: Callable[[Case, Options], dict[str, Any]]
    change: Mapping[str, Any] = field(default_factory=dict)
    """Values of the task that are replaced. With the reference UNCHANGED, only the measured run has them."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that are replaced in the variant, and in the variant of the reference."""
    backend: str | None = None
    """The backend, if it differs from the option."""
    packages: tuple[str, ...] = ()
    """Packages of the extra `hf` that the case needs. If one of them or a file of the data is missing, this case is not
    measured. Other cases stop the report if data are missing."""

    @property
    def runs(self) -> list[Run]:
        """The run of the variant and, if the engine also trains the reference, the run of the reference."""
        measured = benchmark_run(self.task, self.variant, self.change, self.params)
        if self.reference in (BASELINE, PEFT):
            return [measured]
        if self.reference == UNCHANGED:
            return [measured, benchmark_run(self.task, self.variant, params=self.params)]
        return [measured, benchmark_run(self.task, self.reference, self.change, self.params)]

    def options(self, options: Options) -> Options:
        """Return the options with the backend of this case."""
        return replace(options, backend=self.backend or options.backend)

    def missing(self, results: Path, data_dir: Path | None) -> str | None:
        """Return what a case with `packages` cannot be measured without, and the remedy; None if nothing is missing."""
        if not self.packages:
            return None
        if packages := [name for name in self.packages if find_spec(name) is None]:
            return f"the package {' and '.join(packages)} is missing; install it with: pip install 'floral-bench[hf]'"
        names = [data for run in self.runs for data in networks.to_fetch(run.task) if isinstance(data, str)]
        if files := missing_files(dict.fromkeys(names), results, data_dir):
            paths = ", ".join(path for paths in files.values() for path in paths)
            return f"missing: {paths}; set `FLORAL_DATA` or `data_dir` to the folder that holds them"
        return None

    def row(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return the table row of this case: its name, its limit and the values of `result`."""
        return {"case": self.name, "ratio": None, "limit": self.limit, "direction": self.direction, **result}

    def row_without_result(self, missing: str) -> dict[str, Any]:
        """Return the table row of this case if it cannot be measured. `missing` says what is missing."""
        return self.row({"spread": 0.0, "seconds": [], "executions": [], "disturbance": None, "missing": missing})


def to_baseline(case: Case, options: Options) -> dict[str, Any]:
    """Measure the seconds per round of floral's training engine, divided by those of the PyTorch baseline."""
    (run,) = case.runs
    return compare(options.engine(run), BaselineRounds.of(run, options.results, options.threads), options)


def to_variant(case: Case, options: Options) -> dict[str, Any]:
    """Measure the variant's seconds per round, divided by those of the reference variant on the same task."""
    measured, reference = (options.engine(run) for run in case.runs)
    return compare(measured, reference, options)


def to_peft(case: Case, options: Options) -> dict[str, Any]:
    """Measure the seconds per round, divided by those of as many steps on the same batches with peft.

    Both use one thread.
    """
    (run,) = case.runs
    return compare(options.engine(run, threads=1), PeftRounds.of(run, options.results), options)


def peak_gigabytes(case: Case, options: Options) -> dict[str, Any]:
    """Measure the largest memory of the process, in GB, while it builds the model and trains one round.

    The result stands under the key `ratio`, as in the other cases, although it is not a ratio.
    """
    gigabytes, seconds, execution = peak_of_round(case.runs[0], options)
    return {"ratio": gigabytes, "spread": 0.0, "seconds": [seconds], "executions": [execution]}


def peak_to_reference(case: Case, options: Options) -> dict[str, Any]:
    """Measure the largest memory as `peak_gigabytes`, divided by that of the reference.

    Each run has its own process.
    """
    peaks = [in_new_process(peak_of_round, run, options) for run in case.runs]
    gigabytes, seconds, executions = ([*values] for values in zip(*peaks, strict=True))
    return {"ratio": gigabytes[0] / gigabytes[1], "spread": 0.0, "seconds": seconds, "executions": executions}


def peak_of_round(run: Run, options: Options) -> tuple[float, float, str]:
    """Build a run and train its first round. Return the largest memory of the process in GB, the seconds of the round,
    and how it was computed.
    """
    configure_process(options.threads)
    measured = options.engine(run)
    seconds = timing.time_block(measured, 1)
    return memory_bytes("VmHWM") / 1e9, seconds, str(measured)


def to_every_cluster(case: Case, options: Options) -> dict[str, Any]:
    """Measure the variant's seconds per round, divided by C times those of the reference variant.

    C is the number of clusters of the task. Use this for a variant that trains C models, one for each cluster.
    """
    measured, reference = (options.engine(run) for run in case.runs)
    return compare(measured, reference, options, times=case.runs[0].task.clusters)


def to_one_thread(case: Case, options: Options) -> dict[str, Any]:
    """Measure the seconds per round with all threads, divided by those with one thread.

    In both, the engine chooses how the rounds are computed. So the result shows whether more threads ever cost time.
    """
    (run,) = case.runs
    return compare(options.engine(run), options.engine(run, threads=1), options)


def rounds_per_second(case: Case, options: Options) -> dict[str, Any]:
    """Measure how many rounds per second the engine trains.

    The result stands under the key `ratio`, as in the other cases, although it is not a ratio.
    """
    measured = options.engine(case.runs[0])
    rates = 1 / timing.time_blocks(measured, options.rounds)
    return {
        "ratio": float(np.median(rates)),
        "spread": timing.interquartile_range(rates),
        "seconds": [float(np.median(1 / rates))],
        "executions": [str(measured)],
    }


def compare(
    measured: EngineRounds, reference: EngineRounds | BaselineRounds | PeftRounds, options: Options, times: int = 1
) -> dict[str, Any]:
    """Time a measured and a reference implementation in alternating blocks of rounds.

    First, the seconds of the reference are multiplied by `times`. Then return the median ratio of the seconds per
    round, the interquartile range of this ratio, and the seconds per round of both.
    """
    pairs = timing.time_pairs(measured, reference, options.rounds)
    pairs = timing.Pairs(pairs.first, times * pairs.second)
    return {
        "ratio": pairs.ratio,
        "spread": pairs.spread,
        "seconds": list(pairs.seconds),
        "executions": [str(measured), str(reference)],
    }


LANGUAGE = ("tokenizers", *PACKAGES)
"""Packages that the cases with texts need."""

CASES = (
    Case(
        name="fedavg / PyTorch baseline, mnist_rotate",
        limit=1.5,
        task="mnist_rotate",
        variant="fedavg",
        measure=to_baseline,
    ),
    Case(
        name="fedavg / PyTorch baseline, cifar10_rotate_reduced without augmentation",
        limit=1.15,
        task="cifar10_rotate_reduced",
        variant="fedavg",
        measure=to_baseline,
        change={"augmentation": "none"},
    ),
    Case(
        name="floral_1 / fedavg, cifar100_reduced",
        limit=1.6,
        task="cifar100_reduced",
        variant="floral_1",
        reference="fedavg",
        measure=to_variant,
    ),
    Case(
        name="floral_10 / fedavg, cifar100_reduced",
        limit=2.2,
        task="cifar100_reduced",
        variant="floral_10",
        reference="fedavg",
        measure=to_variant,
    ),
    Case(
        name="floral_1 / fedavg, mnist_rotate_reduced",
        limit=1.6,
        task="mnist_rotate_reduced",
        variant="floral_1",
        reference="fedavg",
        measure=to_variant,
    ),
    Case(
        name="ensemble / (C × fedavg), mnist_rotate_reduced",
        limit=1.1,
        task="mnist_rotate_reduced",
        variant="ensemble",
        reference="fedavg",
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
    Case(
        name="all threads / one thread, floral_1, synthetic_linear",
        limit=1.05,
        task="synthetic_linear",
        variant="floral_1",
        measure=to_one_thread,
    ),
    Case(
        name="all threads / one thread, floral_1, mnist_rotate_reduced",
        limit=1.05,
        task="mnist_rotate_reduced",
        variant="floral_1",
        measure=to_one_thread,
    ),
    *(
        Case(
            name=f"module / declared model, fedavg, mnist_rotate, {backend}",
            limit=limit,
            task="mnist_rotate",
            variant="fedavg",
            reference=UNCHANGED,
            measure=to_variant,
            change={"model": {"kind": "module", "build": "floral.bench.modules:mlp", "arguments": {"hidden": 200}}},
            backend=backend,
        )
        for backend, limit in (("loop", 3.0), ("vmap", 1.5))
    ),
    *(
        Case(
            name=f"GB of memory, frozen encoder of 22 million parameters, 40 clients, floral_1, {backend}",
            limit=1.5,
            task="digits_rotate",
            variant="floral_1",
            measure=peak_gigabytes,
            change={
                "model": {"kind": "module", "build": "floral.bench.modules:encoder"},
                "base": "frozen",
                "clients": 40,
                "epochs": 1,
            },
            backend=backend,
        )
        for backend in ("loop", "auto")
    ),
    *(
        Case(
            name=f"{name}: fedit / peft, rank 4, sentiment_genres, one thread, {backend}",
            limit=limit,
            task="sentiment_genres",
            variant="fedit_trained_base",
            reference=PEFT,
            measure=to_peft,
            change={"participation": participation},
            params={"rank": 4, "bias": False},
            backend=backend,
            packages=LANGUAGE,
        )
        for name, backend, limit, participation in (
            ("step of one client", "loop", 1.1, 0.025),
            ("steps of two clients", "auto", 1.0, 0.05),
        )
    ),
    Case(
        name="floral_1 with C = 4 / fedit, rank 4, sentiment_genres",
        limit=1.25,
        task="sentiment_genres",
        variant="floral_1",
        reference="fedit_trained_base",
        measure=to_variant,
        change={"participation": 0.05},
        params={"rank": 4},
        backend="loop",
        packages=LANGUAGE,
    ),
    Case(
        name="GB of memory, sentiment_genres, 40 clients, floral_1 with rank 4, auto",
        limit=1.5,
        task="sentiment_genres",
        variant="floral_1",
        measure=peak_gigabytes,
        change={"participation": 0.1},
        params={"rank": 4},
        backend="auto",
        packages=LANGUAGE,
    ),
    Case(
        name="memory of 400 clients / 40 clients, sentiment_genres, local_adaptor with rank 4, loop",
        limit=1.2,
        task="sentiment_genres",
        variant="local_adaptor",
        reference=UNCHANGED,
        measure=peak_to_reference,
        change={
            "clients": 400,
            "participation": 0.02,
            "partition": {"kind": "domains", "share": 1, "min_rows": 5, "test_share": 0.25},
        },
        params={"rank": 4},
        backend="loop",
        packages=LANGUAGE,
    ),
)

SCALE_CASE, SCALE_LIMIT = "seconds per round, K = 100,000 / K = 1,000, M = 30", 1.1


def scale_row(scale: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table row for `scale`, the result of `floral bench scale`.

    The ratio is the seconds per round with 100,000 clients, divided by those with 1,000 clients. The row shows the
    method with the largest ratio. Its column `by_variant` has the ratios of all methods.
    """
    ratios = scale["ratios"]
    worst = max(ratios, key=lambda variant: ratios[variant]["ratio"])
    return {
        "case": SCALE_CASE,
        "ratio": ratios[worst]["ratio"],
        "limit": SCALE_LIMIT,
        "direction": "max",
        "spread": ratios[worst]["spread"],
        "seconds": ratios[worst]["seconds"],
        "disturbance": ratios[worst]["disturbance"],
        "by_variant": {variant: result["ratio"] for variant, result in ratios.items()},
    }


def holds(row: Mapping[str, Any]) -> bool:
    """Return whether the result of a row is within its limit."""
    return row["ratio"] <= row["limit"] if row["direction"] == "max" else row["ratio"] >= row["limit"]


def runs(cases: Iterable[Case]) -> list[Run]:
    """Return all runs that these cases need."""
    return [run for case in cases for run in case.runs]

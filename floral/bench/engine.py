"""`floral bench engine`: time the engine on one task and variant, and compare it with the PyTorch baseline."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from floral.bench import timing
from floral.bench.machine import watched
from floral.bench.prepare import benchmark_run, prepare
from floral.bench.rounds import BaselineRounds, EngineRounds
from floral.config.run import Run
from floral.core.process import configure_process
from floral.core.spec import Refused


def engine(
    task: str,
    variant: str,
    *,
    results: Path,
    data_dir: Path | None,
    device: str,
    backend: str,
    threads: int,
    rounds: int | None,
) -> dict[str, Any]:
    """Measure seconds per round, samples per second, peak memory, and the ratio to the PyTorch baseline.

    The keys of the result that start with `floor` describe the baseline. If the task has no baseline, its seconds and
    the ratio are None. `disturbance` says how other work on the machine disturbed the measurement, or is None.

    Raises:
        ConfigError: a name is unknown, data are missing, or the method does not support the task.
    """
    run = benchmark_run(task, variant)
    prepare([run], results, data_dir)
    configure_process(threads)
    measured = EngineRounds.of(run, results, device, backend, threads)
    timing.warm_up(measured)
    before = measured.round, measured.samples
    result = {"task": task, "variant": variant, "peak_memory_bytes": peak_memory_bytes(measured)}
    result |= watched(compare_with_baseline, run, measured, results, threads, rounds)
    samples_per_round = (measured.samples - before[1]) / (measured.round - before[0])
    return result | {
        "samples_per_second": samples_per_round / result["seconds_per_round"],
        "threads": threads,
        "execution": asdict(measured.simulation.execution),
        "device": measured.simulation.device.type,
    }


def compare_with_baseline(
    run: Run, measured: EngineRounds, results: Path, threads: int, rounds: int | None
) -> dict[str, Any]:
    """Return the seconds per round of floral's training engine and of the PyTorch baseline, and their ratio.

    If the task has no baseline, return only the engine's seconds, and the reason.
    """
    try:
        baseline = BaselineRounds.of(run, results, threads)
    except Refused as reason:
        seconds = float(np.median(timing.time_blocks(measured, rounds)))
        return {
            "seconds_per_round": seconds,
            "floor_seconds_per_round": None,
            "ratio": None,
            "spread": None,
            "floor": f"none: {reason}",
        }
    pairs = timing.time_pairs(measured, baseline, rounds)
    seconds, baseline_seconds = pairs.seconds
    return {
        "seconds_per_round": seconds,
        "floor_seconds_per_round": baseline_seconds,
        "ratio": pairs.ratio,
        "spread": pairs.spread,
        "pairs": len(pairs.first),
        "floor": f"FedAvg in bare PyTorch, {baseline.baseline}",
    }


def peak_memory_bytes(measured: EngineRounds) -> int:
    """Return the peak memory so far in bytes: of the GPU if the engine uses one, otherwise of this process.

    Call this function before the baseline is built. Otherwise the peak includes the baseline's memory.
    """
    if measured.simulation.device.type == "cuda":
        return torch.cuda.max_memory_allocated(measured.simulation.device)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def as_text(result: dict[str, Any]) -> str:
    """Return the result of `floral bench engine` as lines of text."""
    lines = [
        f"{result['task']} {result['variant']}, {result['threads']} thread{'s' * (result['threads'] != 1)}",
        f"  seconds per round    {result['seconds_per_round']:.5f}",
        f"  samples per second   {result['samples_per_second']:,.0f}",
        f"  peak memory          {result['peak_memory_bytes'] / 1e6:,.0f} MB",
    ]
    if result["ratio"] is None:
        lines.append(f"  PyTorch baseline     {result['floor']}; there is no ratio")
    else:
        lines.append(f"  PyTorch baseline     {result['floor_seconds_per_round']:.5f} s per round: {result['floor']}")
        note = "" if result["variant"] == "fedavg" else f" (the baseline is FedAvg, not {result['variant']})"
        lines.append(f"  ratio to baseline    {result['ratio']:.3f}, spread {result['spread']:.3f}{note}")
    if result["disturbance"]:
        lines.append(f"  not reliable         {result['disturbance']}")
    execution = result["execution"]
    lines.append("  execution            " + ", ".join(f"{key} {value}" for key, value in execution.items() if value))
    return "\n".join(lines)

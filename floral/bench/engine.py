"""`floral bench engine`: one task and variant, timed beside the floor."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from floral.bench import timing
from floral.bench.contenders import EngineRounds, FloorRounds, prepare, run_of, settle
from floral.config.run import Run
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
    """Seconds per round, samples per second, peak memory, and the ratio to the floor (null where there is none).

    Raises:
        ConfigError: unknown names, missing data, a method that cannot do the task.
    """
    run = run_of(task, variant)
    prepare([run], results, data_dir)
    settle(threads)
    contender = EngineRounds.of(run, results, device, backend, threads)
    timing.warm(contender)
    before = contender.round, contender.samples
    found = {"task": task, "variant": variant, "peak_memory_bytes": peak_memory(contender)}
    found |= against_floor(run, contender, results, threads, rounds)
    processed = (contender.samples - before[1]) / (contender.round - before[0])
    return found | {
        "samples_per_second": processed / found["seconds_per_round"],
        "threads": threads,
        "execution": asdict(contender.simulation.execution),
        "device": contender.simulation.device.type,
    }


def against_floor(run: Run, contender: EngineRounds, results: Path, threads: int, rounds: int | None) -> dict[str, Any]:
    """Seconds per round of the contender, of the floor, and their ratio; or the reason why there is no floor."""
    try:
        floor = FloorRounds.of(run, results, threads)
    except Refused as reason:
        seconds = float(np.median(timing.alone(contender, rounds)))
        return {
            "seconds_per_round": seconds,
            "floor_seconds_per_round": None,
            "ratio": None,
            "spread": None,
            "floor": f"none: {reason}",
        }
    pairs = timing.alternate(contender, floor, rounds)
    seconds, floor_seconds = pairs.seconds
    return {
        "seconds_per_round": seconds,
        "floor_seconds_per_round": floor_seconds,
        "ratio": pairs.ratio,
        "spread": pairs.spread,
        "pairs": len(pairs.first),
        "floor": f"FedAvg in bare PyTorch, {floor.floor}",
    }


def peak_memory(contender: EngineRounds) -> int:
    """Bytes at most so far: of the GPU where it is one, else of the process (before there is a floor in it)."""
    if contender.simulation.device.type == "cuda":
        return torch.cuda.max_memory_allocated(contender.simulation.device)
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes


def as_text(found: dict[str, Any]) -> str:
    """The result in lines."""
    lines = [
        f"{found['task']} {found['variant']}, {found['threads']} thread{'s' * (found['threads'] != 1)}",
        f"  seconds per round    {found['seconds_per_round']:.5f}",
        f"  samples per second   {found['samples_per_second']:,.0f}",
        f"  peak memory          {found['peak_memory_bytes'] / 1e6:,.0f} MB",
    ]
    if found["ratio"] is None:
        lines.append(f"  floor                {found['floor']}; so there is no ratio")
    else:
        lines.append(f"  floor                {found['floor_seconds_per_round']:.5f} s per round: {found['floor']}")
        other = "" if found["variant"] == "fedavg" else " (of FedAvg, not of this method)"
        lines.append(f"  ratio to the floor   {found['ratio']:.3f}, spread {found['spread']:.3f}{other}")
    execution = found["execution"]
    lines.append("  execution            " + ", ".join(f"{key} {value}" for key, value in execution.items() if value))
    return "\n".join(lines)

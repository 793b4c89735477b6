"""What a run leaves behind: its progress while it trains, its files when it is done."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save

import floral
from floral.config.run import Run
from floral.config.schema.data import CustomData, Synthetic
from floral.data.federation import Federation
from floral.engine.evaluate import Scores
from floral.engine.simulate import Evaluation, Simulation
from floral.engine.state import State
from floral.io.files import atomic
from floral.runs import layout, segments
from floral.runs.layout import METRICS, as_bytes, parquet

ROUTES = {"round": pl.Int32, "client": pl.Int32, "cluster": pl.Int32, "route": pl.List(pl.Float64)}


@dataclass
class Progress:
    """Where a run stands, as its checkpoint keeps it beside the tensors."""

    round: int = 0
    bytes: int = 0
    client_samples: int = 0
    client_passes: float = 0.0
    metrics: list[list[Any]] = field(default_factory=list)
    routes: list[list[Any]] = field(default_factory=list)
    official: list[tuple[float, float]] = field(default_factory=list)
    """Per round of the last bin: the official score over all clients, and over the round's sample."""
    pending_loss: torch.Tensor | float | None = None
    """The training loss of a round that is yet to be evaluated."""
    diverged_at: int | None = None
    resumptions: int = 0
    execution: dict[str, Any] = field(default_factory=dict)
    """The resolved execution, chosen before round 1: a resumed run keeps it."""
    peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"setup": 0.0, "train": 0.0, "evaluate": 0.0})
    segment: Path | None = None
    """The file in which this process says each evaluated round; no part of a checkpoint."""

    def add(self, evaluation: Evaluation) -> None:
        """Keep an evaluation after the present round."""
        spent = [self.bytes, self.client_samples, self.client_passes]
        self.metrics += [[self.round, split, metric, value, *spent] for split, metric, value in evaluation.metrics]
        if self.segment is not None:
            segments.append(self.segment, self.round, evaluation.metrics)
        if evaluation.routes is not None:
            self.routes.append([self.round, evaluation.routes.tolist()])
        if evaluation.diverged:
            self.diverged_at = self.round

    def as_json(self) -> dict[str, Any]:
        pending_loss = None if self.pending_loss is None else float(self.pending_loss)
        return asdict(self) | {"segment": None, "pending_loss": pending_loss}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Progress:
        """A resumed run's progress."""
        return cls(**{**values, "resumptions": values["resumptions"] + 1})


def write_results(
    folder: Path,
    run: Run,
    simulation: Simulation,
    state: State,
    progress: Progress,
    data: Federation,
    joined: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """All files of a finished or diverged run, summary.json last; returns the summary. `joined`: its unseen clients."""
    began = time.perf_counter()
    last = simulation.own_rows(state, simulation.data.test, np.arange(data.clients))
    scores = last
    if headline(run, progress) == "population":
        scores, rows = simulation.global_test(state)
        spent = [progress.bytes, progress.client_samples, progress.client_passes]
        progress.metrics += [[progress.round, split, metric, value, *spent] for split, metric, value in rows]
    progress.seconds["evaluate"] += time.perf_counter() - began
    metrics = pl.DataFrame(progress.metrics, schema=METRICS, orient="row")
    routes = progress.routes[-1][1] if progress.routes else None
    atomic(folder / "metrics.parquet", parquet(metrics))
    atomic(folder / "clients.parquet", parquet(clients_table(scores, last, simulation, routes)))
    if routes is not None:
        atomic(folder / "routes.parquet", parquet(routes_table(progress, data)))
    if joined is not None:
        atomic(folder / "unseen.parquet", parquet(joined))
    atomic(folder / "model.safetensors", model(state))
    atomic(folder / "costs.json", as_bytes(costs(simulation, state, progress)))
    summary = summarise(run, simulation, scores, metrics, progress, data)
    atomic(folder / "summary.json", as_bytes(summary))
    return summary


def headline(run: Run, progress: Progress) -> str:
    """The split of the result: every client on the whole test set as its cluster sees it ("population"), or on its own
    test rows ("test") where the published code does that, where a client's labels are not distributed as its cluster's,
    and where there is no trained state."""
    own = run.fidelity["evaluation"] == "sampled" or run.task.skewed or progress.diverged_at is not None
    return "test" if own else "population"


def model(state: State) -> bytes:
    """model.safetensors: the final state under the names <group>/<name>. What the store holds is in its own file,
    beside this one and of the same form; the header's `private` names it."""
    stored = {} if state.store is None else state.store.values
    tensors = {
        f"{group}/{name}": tensor.cpu().contiguous()
        for group, params in state.values.items()
        if group not in stored
        for name, tensor in params.items()
    }
    return save(tensors, metadata={"private": state.store.path.name} if state.store is not None else None)


def clients_table(
    scores: Scores, own: Scores, simulation: Simulation, routes: list[list[float]] | None
) -> pl.DataFrame:
    """One row per client after the last round: the headline scores, and hits on its own test rows (or tokens)."""
    regression = simulation.settings.loss == "mse"
    clients = len(scores.clients)
    columns = {
        "client": pl.Series(scores.clients, dtype=pl.Int32),
        "cluster": pl.Series(simulation.data.cluster.cpu().numpy(), dtype=pl.Int32),
        "train_rows": pl.Series(simulation.data.train.count[simulation.data.learner.cpu().numpy()], dtype=pl.Int32),
        "test_rows": pl.Series(scores.rows, dtype=pl.Int32),
        "correct": pl.Series([None] * clients if regression else scores.correct, dtype=pl.Int64),
        "accuracy": pl.Series([None] * clients if regression else scores.accuracy, dtype=pl.Float64),
        "loss": pl.Series(scores.loss, dtype=pl.Float64),
        "own_rows": pl.Series(own.tokens * own.rows, dtype=pl.Int32),
        "own_correct": pl.Series([None] * clients if regression else own.correct, dtype=pl.Int64),
        "route": pl.Series([None] * clients if routes is None else routes, dtype=pl.List(pl.Float64)),
    }
    return pl.DataFrame(columns)


def routes_table(progress: Progress, data: Federation) -> pl.DataFrame:
    """The route of every client at every evaluation."""
    rows = [
        [round, client, int(data.cluster[client]), route]
        for round, by_client in progress.routes
        for client, route in enumerate(by_client)
    ]
    return pl.DataFrame(rows, schema=ROUTES, orient="row")


def costs(simulation: Simulation, state: State, progress: Progress) -> dict[str, Any]:
    """costs.json: what the method costs by count, and what this run took on this machine."""
    counted = simulation.costs(state)
    return {
        "parameters": counted.parameters(),
        "bytes_per_round": counted.bytes_per_client * simulation.cohort_size,
        "passes_per_sample": counted.passes_per_sample,
        "seconds": {**progress.seconds, "total": sum(progress.seconds.values())},
        "peak_memory_bytes": peak_memory(simulation, progress),
        "execution": {
            **asdict(simulation.execution),
            "device": simulation.device.type,
            "dtype": str(simulation.dtype).removeprefix("torch."),
        },
        "gpu": gpu(simulation.device),
        "resumptions": progress.resumptions,
        "machine": machine(),
        "versions": {"floral": floral.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "git_commit": git_commit(),
    }


def peak_memory(simulation: Simulation, progress: Progress) -> int:
    """The most memory of any process of the run so far: of the GPU where there is one, else of the process."""
    if simulation.device.type == "cuda":  # with what is set aside: so much room the run takes beside others
        peak = torch.cuda.max_memory_reserved(simulation.device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(peak, progress.peak_memory_bytes)


def gpu(device: torch.device) -> dict[str, Any] | None:
    """Which of the visible GPUs it was, and its memory; how much of that was used is `peak_memory_bytes`."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    return {"index": device.index, "name": found.name, "memory_bytes": found.total_memory}


def summarise(
    run: Run, simulation: Simulation, scores: Scores, metrics: pl.DataFrame, progress: Progress, data: Federation
) -> dict[str, Any]:
    """summary.json: the last round in one row."""
    last = metrics.filter(pl.col("round") == progress.round)
    value = {(split, metric): number for split, metric, number in last.select("split", "metric", "value").iter_rows()}
    diverged = progress.diverged_at is not None
    sampled = run.fidelity["evaluation"] == "sampled"
    split = headline(run, progress)
    regression = run.task.loss == "mse"
    return {
        "status": "diverged" if diverged else "done",
        **layout.identity(run),
        "round": progress.round,
        "test_accuracy": None if regression else scores.mean(scores.accuracy),
        "test_loss": scores.mean(scores.loss),
        **official_scores(simulation, scores, progress, sampled and not diverged),
        "own_test_accuracy": value.get(("test", "accuracy")),
        "validation_accuracy": value.get(("validation", "accuracy")),
        "validation_loss": value.get(("validation", "loss")),
        "worst_cluster_accuracy": value.get((split, "worst_cluster_accuracy")),
        "worst_decile_accuracy": value.get((split, "worst_decile_accuracy")),
        **further_scores(scores, value, split, data, run.task.data),
        "ari": value.get(("route", "ari")),
        "route_entropy": value.get(("route", "entropy")),
        "mismatch": value.get(("route", "mismatch")),
        "bytes": progress.bytes,
        "client_samples": progress.client_samples,
        "client_passes": progress.client_passes,
        "data_exact": data.exact,
        "partition_digest": data.partition_digest,
        "diverged_at": progress.diverged_at,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def further_scores(
    scores: Scores,
    value: dict[tuple[str, str], float],
    split: str,
    data: Federation,
    source: str | Synthetic | CustomData,
) -> dict[str, Any]:
    """Top-5 accuracy, the worst served in regression, the excess risk, and the means of every true cluster.

    The population of synthetic data is labelled by the teacher without noise, so that the mean squared error on it is
    the excess risk: what the same error on noisy labels has beyond the noise's variance. Not so where the labels are
    normalised per client: a row's label then depends on the other rows of its client, which no model sees.
    """
    excess = split == "population" and isinstance(source, Synthetic) and not source.normalised
    regression, cluster = data.classes is None, data.cluster
    return {
        "classes": data.classes,
        "test_top5_accuracy": value.get((split, "top5_accuracy")),
        "worst_cluster_loss": value.get((split, "worst_cluster_loss")),
        "worst_decile_loss": value.get((split, "worst_decile_loss")),
        "excess_risk": scores.mean(scores.loss) if regression and excess else None,
        "cluster_accuracy": None if regression else scores.by_cluster(scores.accuracy, cluster),
        "cluster_loss": scores.by_cluster(scores.loss, cluster),
    }


def official_scores(simulation: Simulation, scores: Scores, progress: Progress, valid: bool) -> dict[str, float | None]:
    """The published number, the mean over the last of 51 bins of rounds, over all clients and over the sampled ones; a
    method without rounds has its one value."""
    names = ("official_score", "official_score_sampled")
    if not valid:
        return dict.fromkeys(names)
    if not progress.official:
        return dict.fromkeys(names, scores.mean(scores.loss if simulation.settings.loss == "mse" else scores.accuracy))
    return dict(zip(names, np.mean(progress.official, axis=0).tolist(), strict=True))


def machine() -> dict[str, Any]:
    """What the run was computed on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = named[0] if named else model
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
    }


@cache
def git_commit() -> str | None:
    """The commit of the code, with "+" when its files or config/ differ, new ones too; None outside a checkout."""
    try:
        return _git("rev-parse", "--short=12", "HEAD") + (
            "+" if _git("status", "--porcelain", ".", "../config") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*command: str) -> str:
    whole = ["git", "-C", str(Path(floral.__file__).parent), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=True).stdout.strip()

"""The progress of a run: its rounds, costs and evaluations. A checkpoint stores the progress next to the tensors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from floral.engine.simulate import Evaluation
from floral.runs import segments
from floral.runs.core_seconds import PARTS


@dataclass
class Progress:
    """The rounds, costs and evaluations of a run so far."""

    round: int = 0
    bytes: int = 0
    client_samples: int = 0
    client_passes: float = 0.0
    metrics: list[list[Any]] = field(default_factory=list)
    """Rows of metrics.parquet."""
    routes: list[list[Any]] = field(default_factory=list)
    """[round, route of every client] of each evaluation."""
    official: list[tuple[float, float]] = field(default_factory=list)
    """For each round of the last of 51 bins: the official score over all clients, and over a sample of the clients."""
    pending_loss: torch.Tensor | float | None = None
    """The training loss of a trained round that is not evaluated yet."""
    diverged_at: int | None = None
    resumptions: int = 0
    execution: dict[str, Any] = field(default_factory=dict)
    """How the run is computed (backend, chunk size, threads), chosen before round 1. A resumed run uses the same."""
    code: dict[str, str] | None = None
    """Digests of the files of the run's method, model and adaptors; None in a checkpoint of an earlier version."""
    peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"setup": 0.0, "train": 0.0, "evaluate": 0.0})
    core_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """CPU time of the run's processes, summed over their threads."""
    segment: Path | None = None
    """The file to which this process appends each evaluated round; checkpoints leave it out."""

    def add(self, evaluation: Evaluation) -> None:
        """Add the evaluation of the current round to the progress, and append its metrics to the segment file.

        Other processes read the segment file while the run trains.
        """
        self.record(evaluation.metrics)
        if self.segment is not None:
            segments.append(self.segment, self.round, evaluation.metrics)
        if evaluation.routes is not None:
            self.routes.append([self.round, evaluation.routes.tolist()])
        if evaluation.diverged:
            self.diverged_at = self.round

    @contextmanager
    def timed(self, part: Literal["train", "evaluate"]) -> Iterator[None]:
        """Add the wall time and the CPU time of the block to a part of the run. A block with an error adds nothing."""
        began, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[part] += time.perf_counter() - began
        self.core_seconds[part] += time.process_time() - cpu

    def add_official(self, scores: tuple[float, float]) -> None:
        """Add the published code's score of a round of the last bin, also to the rows of metrics.parquet."""
        self.official.append(scores)
        of_all, of_sample = scores
        self.record([("official", "score", of_all), ("official", "score_sampled", of_sample)])

    def record(self, values: Iterable[tuple[str, str, float]]) -> None:
        """Add rows to metrics.parquet for the current round: (split, metric, value), beside the costs so far."""
        costs = [self.bytes, self.client_samples, self.client_passes]
        self.metrics += [[self.round, split, metric, value, *costs] for split, metric, value in values]

    def as_json(self) -> dict[str, Any]:
        """Return the values that a checkpoint stores."""
        pending_loss = None if self.pending_loss is None else float(self.pending_loss)
        return asdict(self) | {"segment": None, "pending_loss": pending_loss}

    @classmethod
    def resumed(cls, values: dict[str, Any]) -> Progress:
        """Restore the progress from the values in a checkpoint, and increase the number of resumptions by 1."""
        return cls(**{**values, "resumptions": values["resumptions"] + 1})

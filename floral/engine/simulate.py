"""A simulated federation: rounds of cohort, local training, aggregation and server step; scheduled evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from floral import seeds
from floral.engine import evaluate, local
from floral.engine.aggregate import Mean, ServerOptimiser, write_back
from floral.engine.batched import Batched
from floral.engine.capture import Captured
from floral.engine.costs import Costs, count
from floral.engine.devices import Precision
from floral.engine.graphs import Graphs, cuda_graphs
from floral.engine.rows import ClientData, plan
from floral.engine.state import State, start, view
from floral.spec import Batch, Method

EXPLODED = 1e8
"""A loss above this counts as diverged, like NaN."""
EVALUATED = 5
"""Clients that are evaluated in one piece, at least."""


@dataclass(frozen=True)
class Execution:
    """How the arithmetic is carried out: it changes the last bits of a result, never the method."""

    backend: Literal["loop", "vmap", "batched"]
    chunk: int
    """Clients that are trained in one piece."""
    workers: int = 1
    """Python threads, each with its own chunks."""
    threads: int = 1
    """Of one worker, within one operation."""
    precision: Precision = "fp32"
    graphs: bool = False
    """Whether a GPU replays recorded steps as graphs; they have one set of buffers, hence one worker."""
    reason: str = ""

    @property
    def lifted(self) -> bool:
        return self.backend != "loop"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the task and the fidelity fix about a federation's rounds."""

    rounds: int
    clusters: int
    cohort: int
    epochs: int
    batch: int
    loss: local.Loss
    server: ServerOptimiser
    seed: int
    evaluation_period: int
    participation: float
    reshuffle: bool
    sampled_evaluation: bool
    weighting: evaluate.Weighting
    massless: Literal["keep", "average"]

    def last_bin(self, round: int) -> bool:
        """Whether a round is in the last of 51 bins, the last 1 %, over which the published number is a mean."""
        return 100 * round >= 99 * self.rounds

    def evaluates(self, round: int) -> bool:
        """Scheduled evaluation: every period and the last round."""
        return round % self.evaluation_period == 0 or round == self.rounds


@dataclass
class Part:
    """What one worker's chunks add to a round."""

    mean: Mean = field(default_factory=Mean)
    private: list[tuple[Tensor, local.Trained]] = field(default_factory=list)
    """Learners and what they trained, to be written back."""
    loss: Tensor | float = 0.0
    samples: int = 0


class Workers:
    """Threads that each compute on their own clients, with `threads` threads within one operation.

    PyTorch's operations run outside Python's lock, so that Python threads are enough.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count, self.threads = count, threads
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """The results in the items' order; one worker is the thread that calls."""
        if self.count == 1:
            return [function(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "client", initializer=self._start)
        return list(self._pool.map(function, items))

    def _start(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)


@dataclass(frozen=True)
class Evaluation:
    """What was measured after a round: (split, metric, value) in a fixed order, and routes [K, C]."""

    metrics: list[tuple[str, str, float]]
    routes: np.ndarray | None
    diverged: bool


class Simulation:
    """A method on a task's data. All randomness is of (seed, purpose, round, client): a resumed run is the same run."""

    def __init__(
        self,
        method: Method,
        data: ClientData,
        settings: Settings,
        execution: Execution,
        *,
        most_steps: int | None = None,
    ) -> None:
        """`most_steps` cuts every phase of local training short, for trials that only take its time."""
        if method.phases == ():
            settings = replace(settings, rounds=0)
        self.method, self.data, self.settings, self.execution = method, data, settings, execution
        self.device, self.dtype = data.train.x.device, data.train.dtype
        self.most_steps = most_steps
        self.draws = {**method.draws, **data.train.augment_draws}
        rounded = torch.bfloat16 if execution.precision == "bf16" else None
        self.clients = local.Clients(method, settings.loss, execution.lifted, settings.clusters, rounded)
        if execution.backend == "batched":
            graphs = Graphs(cuda_graphs()) if execution.graphs and self.device.type == "cuda" else None
            self.clients = Batched.of(self.clients, Captured(graphs))
        self.phases = self.clients.phases
        self.epochs = [phase.epochs or settings.epochs for phase in self.phases]
        self.workers = Workers(execution.workers, execution.threads)
        self._costs: Costs | None = None

    # ------------------------------------------------------------------------------------------------ start

    def start(self, private: Path | None = None) -> State:
        """The untrained state, after the method's own preparation; `private` is the file for large PRIVATE groups."""
        state = start(self.method, self.dtype, self.device, private)
        if self.method.prepare is not None:
            rows = np.concatenate([self.data.train.index[u, :n] for u, n in enumerate(self.data.train.count)])
            x, y = self.data.train.gather(torch.from_numpy(rows).to(self.device))
            state.values.update(self.method.prepare(x, y))
        return state

    def costs(self, state: State) -> Costs:
        """Counted once from shapes."""
        if self._costs is None:
            self._costs = count(self.method, state, epochs=sum(self.epochs))
        return self._costs

    # ------------------------------------------------------------------------------------------------ rounds

    def cohort(self, round: int) -> np.ndarray:
        """The learners of a round: uniform without replacement; pools always take part."""
        learners = len(self.data.train.count)
        if self.method.pool is not None:
            return np.arange(learners)
        return seeds.sample(self.settings.seed, "cohort", round, size=learners, count=self.settings.cohort)

    def train(self, state: State, round: int) -> tuple[Tensor, int]:
        """One round, in place: returns the cohort's mean loss (not yet synchronised) and the samples it processed."""
        method, settings = self.method, self.settings
        parts = self.local_training(state, round, self.cohort(round))
        mean, loss = Mean(), torch.zeros((), dtype=self.dtype, device=self.device)
        for part in parts:
            mean.add(part.mean, method)
            loss = loss + part.loss
            for ids, trained in part.private:
                write_back(state, method, trained, ids)
        means, kept = mean.result(settings.massless, method)
        settings.server.step(state, means, kept, method)
        return loss, sum(part.samples for part in parts)

    def local_training(self, state: State, round: int, cohort: np.ndarray) -> list[Part]:
        """What each worker's share of a cohort adds to a round; the state is only read."""
        count = self.data.train.count
        cohort = cohort[count[cohort] > 0]
        share = torch.from_numpy(count[cohort] / max(1, count[cohort].sum())).to(self.device)
        size, workers = self.execution.chunk if self.execution.lifted else 1, self.execution.workers
        chunks = [slice(at, at + size) for at in range(0, len(cohort), size)]

        def work(worker: int) -> Part:
            part = Part()
            for at in chunks[worker::workers]:
                trained = self.train_chunk(state, round, cohort[at], share[at])
                part.mean.add(trained.mean, self.method)
                part.private.append((torch.from_numpy(cohort[at]).to(self.device), trained))
                part.loss = part.loss + (trained.loss * share[at].to(self.dtype)).sum()
                part.samples += trained.samples
            return part

        return self.workers.map(work, range(min(workers, len(chunks))))

    def train_chunk(self, state: State, round: int, learners: np.ndarray, share: Tensor) -> local.Trained:
        """Local training of some learners, whose weights in the round are `share` [m]; the state is only read."""
        settings, rows = self.settings, self.data.train
        batches = plan(
            rows,
            learners,
            round=round,
            seed=settings.seed,
            batch=settings.batch,
            epochs=sum(self.epochs),
            reshuffle=settings.reshuffle or self.method.pool is not None,  # a pool has no loader to be faithful to
            share=1.0 if self.method.pool is None else settings.participation,
        )
        steps = batches.steps // sum(self.epochs)
        ends = pairwise(np.cumsum([0, *self.epochs]) * steps)
        ranges = [range(first, end)[: self.most_steps] for first, end in ends]
        ids = torch.from_numpy(learners).to(self.device)
        seen, axes = view(self.method, state.values, ids, ids)
        return local.train_chunk(
            self.clients,
            seen,
            axes,
            local.Chunk(share, None if self.method.member is None else self.method.member[ids]),
            batches,
            rows,
            draw=lambda step, size: local.make_draws(
                self.draws,
                learners,
                seed=settings.seed,
                round=round,
                epoch=step // steps,
                step=step % steps,
                batch=size,
                like=rows,
            ),
            phases=list(zip(self.phases, ranges, strict=True)),
            held=lambda: self.held(learners),
        )

    def held(self, learners: np.ndarray) -> Batch:
        """All training rows of some learners: x [m, n, ...], decoded and not augmented."""
        rows = self.data.train
        count = rows.count[learners, None]
        width = max(1, int(count.max()))
        x, y = rows.gather(torch.from_numpy(rows.index[learners, :width]).to(self.device))
        return Batch(x, y, torch.from_numpy(np.arange(width) < count).to(self.device))

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, state: State, round: int, train_loss: float | None) -> Evaluation:
        """Scheduled evaluation on clients' own rows: of all, or of a fresh sample before the last round."""
        settings, data = self.settings, self.data
        everyone = np.arange(data.clients)
        sampled = settings.sampled_evaluation and round < settings.rounds
        clients = self.evaluated_clients(round) if sampled else everyone
        metrics: list[tuple[str, str, float]] = []
        if train_loss is not None:
            metrics.append(("train", "loss", train_loss))
        test = self.own_rows(state, data.test, clients)
        metrics += self._summary("test", test)
        if not sampled:
            metrics += self._worst("test", test)
        if data.validation is not None:
            metrics += self._summary("validation", self.own_rows(state, data.validation, clients))
        routes = evaluate.served_routes(self.method, state, data.learner, data.clients, settings.clusters)
        if routes is not None:
            found = evaluate.route_metrics(
                routes, data.cluster.cpu().numpy(), data.train.count[data.learner.cpu().numpy()]
            )
            metrics += [("route", name, value) for name, value in found.items()]
        losses = [value for _, metric, value in metrics if metric == "loss"]
        return Evaluation(metrics, routes, diverged=not all(abs(value) < EXPLODED for value in losses))

    def official_scores(self, state: State, round: int) -> tuple[float, float]:
        """The published code's number for one round, over all clients and over its fresh sample of them.

        Both have the same expectation; the sample adds noise (0.8 points a seed on the reduced MNIST tasks).
        """
        scores = self.own_rows(state, self.data.test, np.arange(self.data.clients))
        values = scores.loss if self.settings.loss == "mse" else scores.accuracy
        return scores.mean(values), scores.mean(values, self.evaluated_clients(round))

    def evaluated_clients(self, round: int) -> np.ndarray:
        """The clients that the published code evaluates after a round, drawn apart from the cohort."""
        size, count = self.data.clients, self.settings.cohort
        return seeds.sample(self.settings.seed, "evaluated clients", round, size=size, count=count)

    def population(self, state: State) -> tuple[evaluate.Scores, list[tuple[str, str, float]]]:
        """Each client on the whole test set under its own shift; costly, so for the last round only."""
        data = self.data
        scores = evaluate.on_population(
            self.method,
            state,
            data.population,
            data.test.decode,
            data.learner,
            data.cluster,
            loss=self.settings.loss,
            map=self.workers.map,
        )
        return scores, self._summary("population", scores) + self._worst("population", scores)

    def own_rows(self, state: State, rows: Any, clients: np.ndarray) -> evaluate.Scores:
        """Scores of some clients on their own rows of a split."""
        return evaluate.on_own_rows(
            self.method,
            state,
            rows,
            self.data.learner,
            clients,
            loss=self.settings.loss,
            weighting=self.settings.weighting,
            batch=self.settings.batch,
            chunk=max(self.execution.chunk, EVALUATED),
            lifted=self.execution.lifted,
            map=self.workers.map,
        )

    def _summary(self, split: str, scores: evaluate.Scores) -> list[tuple[str, str, float]]:
        found = [] if self.settings.loss == "mse" else [(split, "accuracy", scores.mean(scores.accuracy))]
        return [*found, (split, "loss", scores.mean(scores.loss))]

    def _worst(self, split: str, scores: evaluate.Scores) -> list[tuple[str, str, float]]:
        if self.settings.loss == "mse":
            return []
        cluster = self.data.cluster.cpu().numpy()
        by_cluster = [scores.mean(scores.accuracy, cluster == c) for c in np.unique(cluster)]
        count = max(1, round(len(cluster) / 10))
        return [
            (split, "worst_cluster_accuracy", float(np.nanmin(by_cluster))),
            (split, "worst_decile_accuracy", float(np.sort(scores.accuracy)[:count].mean())),
        ]

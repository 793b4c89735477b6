"""A simulated federation: rounds of cohort, local training, aggregation and server step; scheduled evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from floral import seeds
from floral.engine import evaluate, local
from floral.engine.aggregate import Mean, ServerOptimiser, write_back
from floral.engine.costs import Costs, count
from floral.engine.rows import ClientData, plan
from floral.engine.state import State, start, view
from floral.spec import Method, Phase

EXPLODED = 1e8
"""A loss above this counts as diverged, like NaN."""


@dataclass(frozen=True)
class Execution:
    """How the arithmetic is carried out: it changes the last bits of a result, never the method."""

    backend: Literal["loop", "vmap"]
    chunk: int
    reason: str = ""

    @property
    def lifted(self) -> bool:
        return self.backend == "vmap"


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


@dataclass(frozen=True)
class Evaluation:
    """What was measured after a round: (split, metric, value) in a fixed order, and routes [K, C]."""

    metrics: list[tuple[str, str, float]]
    routes: np.ndarray | None
    diverged: bool


class Simulation:
    """A method on a task's data. All randomness is of (seed, purpose, round, client): a resumed run is the same run."""

    def __init__(self, method: Method, data: ClientData, settings: Settings, execution: Execution) -> None:
        if method.phases == ():
            settings = replace(settings, rounds=0)
        self.method, self.data, self.settings, self.execution = method, data, settings, execution
        self.device, self.dtype = data.train.x.device, data.train.dtype
        self.phases = method.phases if method.phases is not None else (Phase(train=method.trained),)
        self.epochs = [phase.epochs or settings.epochs for phase in self.phases]
        self._costs: Costs | None = None

    # ------------------------------------------------------------------------------------------------ start

    def start(self) -> State:
        """The untrained state, after the method's own preparation."""
        state = start(self.method, self.dtype, self.device)
        if self.method.prepare is not None:
            rows = np.concatenate([self.data.train.index[u, :n] for u, n in enumerate(self.data.train.count)])
            x, y = self.data.train.gather(torch.from_numpy(rows).to(self.device))
            state.values.update(self.method.prepare(x, y))
        return state

    def costs(self, state: State) -> Costs:
        """Counted once from shapes."""
        if self._costs is None:
            self._costs = count(self.method, state)
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
        method, rows, settings = self.method, self.data.train, self.settings
        cohort = self.cohort(round)
        cohort = cohort[rows.count[cohort] > 0]
        mean = Mean(method, settings.clusters)
        total = int(rows.count[cohort].sum())
        loss = torch.zeros((), dtype=self.dtype, device=self.device)
        samples = 0
        chunk = self.execution.chunk if self.execution.lifted else 1
        for at in range(0, len(cohort), chunk):
            some = cohort[at : at + chunk]
            share = torch.from_numpy(rows.count[some] / total).to(self.device)
            trained, processed = self.train_chunk(state, round, some, share)
            ids = torch.from_numpy(some).to(self.device)
            mean.add(trained, share, None if method.member is None else method.member[ids])
            write_back(state, method, trained, ids)
            loss = loss + (trained.loss * share.to(self.dtype)).sum()
            samples += processed
        means, kept = mean.result(settings.massless)
        settings.server.step(state, means, kept, method)
        return loss, samples

    def train_chunk(self, state: State, round: int, learners: np.ndarray, share: Tensor) -> tuple[local.Trained, int]:
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
        ranges = [range(first, end) for first, end in pairwise(np.cumsum([0, *self.epochs]) * steps)]
        ids = torch.from_numpy(learners).to(self.device)
        seen, axes = view(self.method, state.values, ids, ids)
        trained = local.train_chunk(
            self.method,
            seen,
            axes,
            batches,
            rows,
            loss=settings.loss,
            lifted=self.execution.lifted,
            draw=lambda step, size: local.make_draws(
                self.method.draws,
                learners,
                seed=settings.seed,
                round=round,
                epoch=step // steps,
                step=step % steps,
                batch=size,
                like=rows,
            ),
            phases=list(zip(self.phases, ranges, strict=True)),
            share=share.to(self.dtype),
        )
        return trained, int(batches.samples.sum())

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
            self.method, state, data.population, data.test.decode, data.learner, data.cluster, loss=self.settings.loss
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
            chunk=max(self.execution.chunk, 1),
            lifted=self.execution.lifted,
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

"""Simulate a federation: rounds (cohort, local training, aggregation, server optimiser) and scheduled evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from floral.core import seeds
from floral.core.precision import Precision
from floral.core.process import set_threads
from floral.core.spec import Batch, ClientVectors, Loss, Method, Noise, Optimiser, Phase, ServerView, View
from floral.core.units import decile_count
from floral.engine import evaluate, local
from floral.engine.aggregate import Mean, replace_values, server_step, write_back
from floral.engine.batched import Batched
from floral.engine.before_rounds import BeforeRounds
from floral.engine.capture import Captured
from floral.engine.client_data import ClientData, plan
from floral.engine.costs import Costs, count, mean, needed_to_predict
from floral.engine.graphs import Graphs, cuda_graphs
from floral.engine.state import State, client_view, start, view

DIVERGED_LOSS = 1e8
"""A loss from this value on counts as diverged, like NaN."""
MIN_EVALUATION_CHUNK = 5
"""Minimum number of clients that are evaluated in one piece."""


@dataclass(frozen=True)
class Execution:
    """How a run is computed: backend, chunk size, workers, threads and precision.

    Apart from `precision`, this changes only the last bits of a result.
    """

    backend: Literal["loop", "vmap", "batched"]
    chunk: int
    """Clients that are trained in one piece."""
    workers: int = 1
    """Number of Python threads, each with its own chunks."""
    threads: int = 1
    """Number of threads of one worker within one tensor operation."""
    precision: Precision = "fp32"
    graphs: bool = False
    """Whether a GPU replays recorded steps as CUDA graphs. The graphs share buffers, so there is one worker."""
    reason: str = ""
    """Why this execution was chosen."""

    @property
    def vectorised(self) -> bool:
        return self.backend != "loop"

    @property
    def cores(self) -> int:
        """The number of cores that are busy at once."""
        return self.workers * self.threads


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the rounds of a simulation.

    They come from the task and from the fidelity, which is "official" (as in the published code) or "corrected".
    """

    rounds: int
    clusters: int
    cohort: int
    epochs: int
    batch: int
    steps_per_epoch: int | None = None
    """Steps of each local epoch. None: one pass over a client's samples."""
    loss: Loss
    server: Optimiser
    seed: int
    evaluation_period: int
    participation: float
    reshuffle: bool
    sampled_evaluation: bool
    weighting: evaluate.Weighting
    empty_cluster: Literal["keep", "average"]

    def last_bin(self, round: int) -> bool:
        """Return whether a round is in the last 1 % of the rounds, over which the published code averages its score."""
        # The published code splits the rounds into 51 bins and averages over the last, smaller one.
        return 100 * round >= 99 * self.rounds

    def evaluates(self, round: int) -> bool:
        """Return whether a round ends with an evaluation: every `evaluation_period`-th round and the last one do."""
        return round % self.evaluation_period == 0 or round == self.rounds


@dataclass
class Part:
    """What one worker contributes to a round: weighted sums, results of chunks, losses and the number of samples."""

    mean: Mean = field(default_factory=Mean)
    trained: list[tuple[slice, local.Trained]] = field(default_factory=list)
    """Chunks of the cohort, and their results."""
    loss: Tensor | float = 0.0
    samples: int = 0


class Workers:
    """The `count` worker threads of a run, each of which trains its own clients.

    Each worker uses `threads` threads within one tensor operation. The workers run in parallel, because PyTorch's
    operations release Python's global lock.
    """

    def __init__(self, count: int, threads: int, check_stop: Callable[[], None]) -> None:
        self.count, self.threads, self.check_stop = count, threads, check_stop
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Apply a function to each item, in parallel, and return the results in the order of the items.

        `check_stop` is called before each item. A single worker runs in the calling thread.
        """

        def work(item: Any) -> Any:
            self.check_stop()
            return function(item)

        if self.count == 1:
            return [work(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "client", initializer=self._start)
        return list(self._pool.map(work, items))

    def _start(self) -> None:
        set_threads(self.threads)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation after a round.

    `metrics` has tuples (split, metric, value) in a fixed order. `routes` [K, C] are the clients' weights in the
    clusters, or None. `diverged` says that a loss is too large or NaN.
    """

    metrics: list[tuple[str, str, float]]
    routes: np.ndarray | None
    diverged: bool


class Simulation:
    """The simulation of one method on the data of one task.

    Random numbers depend only on (seed, purpose, round, client), so a resumed run gives the same results.
    """

    def __init__(
        self,
        method: Method,
        data: ClientData,
        settings: Settings,
        execution: Execution,
        *,
        most_steps: int | None = None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare a simulation.

        `most_steps` is the maximum number of local steps per phase, for trials that measure time. `check_stop` is
        called before each local step and before each part of an evaluation. It may raise an exception, because the
        state has not been changed at these points.

        Raises:
            Refused: the backend cannot run the method.
        """
        if method.phases == ():
            settings = replace(settings, rounds=0)
        self.method, self.data, self.settings, self.execution = method, data, settings, execution
        self.device, self.dtype = data.train.x.device, data.train.dtype
        self.most_steps, self.check_stop = most_steps, check_stop
        self.noise = {**method.noise, **data.train.augment_draws}
        self.clusters = method.routing.clusters or settings.clusters
        self.graphs = Graphs(cuda_graphs()) if execution.graphs and self.device.type == "cuda" else None
        self.workers = Workers(execution.workers, execution.threads, check_stop)
        self._clients: dict[tuple[Phase, ...], local.Clients] = {}
        self._costs: dict[tuple[tuple[Phase, ...], ...], Costs] = {}
        self._needed: frozenset[str] | None = None
        if settings.rounds:
            self.clients(1)  # raises Refused now rather than in the first round

    # ------------------------------------------------------------------------------------------------ start

    def start(self, private: Path | None = None) -> State:
        """Make the untrained state.

        If the method has a function `prepare`, the groups that it returns replace the initial ones. `private` is the
        path of the file for PRIVATE groups that are too large for memory.
        """
        state = start(self.method, self.dtype, self.device, private)
        if self.method.prepare is not None:
            state.values.update(self.converted(self.method.prepare(BeforeRounds(self, state))))
        return state

    def converted(self, values: View) -> View:
        """Return values on the device and with the dtype of the simulation."""
        return {
            group: {name: t.to(device=self.device, dtype=self.dtype) for name, t in params.items()}
            for group, params in values.items()
        }

    # ------------------------------------------------------------------------------------------------ phases

    def phases(self, round: int) -> tuple[Phase, ...]:
        """Return the phases of local training in a round. Each phase trains some of the groups of parameters."""
        return self.method.phases_of(round, self.settings.rounds)

    def epochs(self, round: int) -> list[int]:
        """Return the number of epochs of each phase of a round."""
        return [phase.epochs or self.settings.epochs for phase in self.phases(round)]

    def kinds(self) -> list[int]:
        """Return the first round of each kind. Rounds are of the same kind if they have the same training phases."""
        first: dict[tuple[Phase, ...], int] = {}
        for round in range(1, self.settings.rounds + 1):
            first.setdefault(self.phases(round), round)
        return list(first.values())

    def clients(self, round: int) -> local.Clients:
        """Return the object that does the local steps of a round. Rounds with the same phases share one object."""
        phases = self.phases(round)
        if phases not in self._clients:
            vectorised = self.execution.vectorised
            rounded = torch.bfloat16 if self.execution.precision == "bf16" else None
            plain = local.Clients(self.method, phases, self.settings.loss, vectorised, self.clusters, rounded)
            batched = self.execution.backend == "batched"
            self._clients[phases] = Batched.of(plain, Captured(self.graphs)) if batched else plain
        return self._clients[phases]

    def costs(self, state: State) -> Costs:
        """Return the costs of one client in one round, as a mean over all rounds."""
        return mean([self.costs_of(state, round) for round in range(1, max(1, self.settings.rounds) + 1)])

    def costs_of(self, state: State, round: int) -> Costs:
        """Return the costs of one client in the given round, counted from the shapes of the parameters.

        The result is stored, and used again for rounds with the same phases.
        """
        now, before = self.phases(round), self.phases(max(1, round - 1))
        if (now, before) not in self._costs:
            if self._needed is None:
                first = torch.zeros(1, dtype=torch.long, device=self.device)
                seen = client_view(*view(self.method, state.values, self.data.pool_of_client[first], first))
                samples = Batch(*self.data.train.gather(first), torch.ones_like(first, dtype=torch.bool))
                if self.method.before_predictions is not None:  # a pool of all clients would be large
                    held = self.held(self.data.pool_of_client[first].cpu().numpy())
                    samples = Batch(held.x[0], held.y[0], held.mask[0])
                self._needed = needed_to_predict(self.method, seen, samples)
            epochs = sum(self.epochs(round))
            self._costs[now, before] = count(self.method, state, now, before, self._needed, epochs=epochs)
        return self._costs[now, before]

    # ------------------------------------------------------------------------------------------------ rounds

    @property
    def cohort_size(self) -> int:
        """The number of clients that take part in a round, or of pools if the method trains pools of clients."""
        return self.settings.cohort if self.method.pool is None else len(self.data.train.count)

    def cohort(self, round: int) -> np.ndarray:
        """Return the clients of a round, drawn uniformly without replacement.

        If the method trains pools of clients on their joint samples, it returns all pools, because they take part in
        every round.
        """
        if self.method.pool is not None:
            return np.arange(self.cohort_size)
        size = len(self.data.train.count)
        return seeds.sample(self.settings.seed, "cohort", round, size=size, count=self.cohort_size)

    def train(self, state: State, round: int) -> tuple[Tensor, int]:
        """Do one round and change the state in place; return the cohort's mean loss and number of processed samples.

        The loss is a tensor on the device. The device may still be computing it.
        """
        method = self.method
        cohort, share = self.pools(round)
        parts = self.local_training(state, round, cohort, share)
        total, loss = Mean(), torch.zeros((), dtype=self.dtype, device=self.device)
        for part in parts:
            total.add(part.mean, method)
            loss = loss + part.loss
            for at, trained in part.trained:
                write_back(state, method, trained, torch.from_numpy(cohort[at]).to(self.device))
        means, empty = total.result(self.settings.empty_cluster, method)
        after = server_step(method.server.optimiser or self.settings.server, state, means, empty, method)
        if method.server.update is not None:
            sent = self.client_vectors(cohort, share, parts)
            after |= method.server.update(
                ServerView(round=round, before=state.values, means=means, after=after, client_vectors=sent)
            )
        replace_values(state, after)
        return loss, sum(part.samples for part in parts)

    def pools(self, round: int) -> tuple[np.ndarray, Tensor]:
        """Return the indices [M] of the cohort's clients that have samples, and their weights p(k) [M] in the round.

        The weight of client k is its share of the samples of the cohort. If the method trains pools of clients on their
        joint samples, the indices and weights are those of the pools.
        """
        count, cohort = self.data.train.count, self.cohort(round)
        cohort = cohort[count[cohort] > 0]
        return cohort, torch.from_numpy(count[cohort] / max(1, count[cohort].sum())).to(self.device)

    def local_training(self, state: State, round: int, cohort: np.ndarray, share: Tensor) -> list[Part]:
        """Train the clients `cohort` [M], and return the contribution of each worker. The state is not changed."""
        size, workers = self.execution.chunk if self.execution.vectorised else 1, self.execution.workers
        chunks = [slice(at, at + size) for at in range(0, len(cohort), size)]
        self.clients(round)  # made here, because workers would make it several times

        def work(worker: int) -> Part:
            part = Part()
            for at in chunks[worker::workers]:
                trained = self.train_chunk(state, round, cohort[at], share[at])
                part.mean.add(trained.mean, self.method)
                part.trained.append((at, trained))
                part.loss = part.loss + (trained.loss * share[at].to(self.dtype)).sum()
                part.samples += trained.samples
            return part

        return self.workers.map(work, range(min(workers, len(chunks))))

    def client_vectors(self, cohort: np.ndarray, share: Tensor, parts: list[Part]) -> ClientVectors | None:
        """Return the vectors that the clients of a round send to the server, in the order of the cohort.

        The result is None if the method defines no such vector (`ServerStep.client_vector`).
        """
        if self.method.server.client_vector is None:
            return None
        chunks = sorted((chunk for part in parts for chunk in part.trained), key=lambda chunk: chunk[0].start)
        vectors = [trained.client_vectors for _, trained in chunks if trained.client_vectors is not None]
        return ClientVectors(torch.from_numpy(cohort).to(self.device), share, torch.cat(vectors))

    def train_chunk(self, state: State, round: int, pools: np.ndarray, share: Tensor) -> local.Trained:
        """Train the m clients of a chunk for one round, and return the result. The state is not changed.

        `pools` [m] has the indices of the clients, or of pools of clients, and `share` [m] has their weights p(k).
        """
        settings, rows = self.settings, self.data.train
        clients, epochs = self.clients(round), self.epochs(round)
        batches = plan(
            rows,
            pools,
            round=round,
            seed=settings.seed,
            batch=settings.batch,
            epochs=sum(epochs),
            reshuffle=settings.reshuffle or self.method.pool is not None,  # the published code has no pools
            share=1.0 if self.method.pool is None else settings.participation,
            steps=self.fixed_steps(pools),
        )
        steps = batches.steps // sum(epochs)
        ends = pairwise(np.cumsum([0, *epochs]) * steps)
        ranges = [range(first, end)[: self.most_steps] for first, end in ends]
        ids = torch.from_numpy(pools).to(self.device)
        clusters = self.method.routing.cluster_of_client
        seen, axes = view(self.method, state.values, ids, ids)

        def draw(step: int, size: int) -> Noise:
            self.check_stop()
            return local.make_noise(
                self.noise,
                pools,
                seed=settings.seed,
                round=round,
                epoch=step // steps,
                step=step % steps,
                batch=size,
                like=rows,
            )

        return local.train_chunk(
            clients,
            seen,
            axes,
            local.Chunk(share, None if clusters is None else clusters[ids]),
            batches,
            rows,
            draw=draw,
            phases=list(zip(clients.phases, ranges, strict=True)),
            at=(round, settings.rounds),
            held=lambda: self.held(pools),
            held_out=lambda: self.held_out,
        )

    @cached_property
    def held_out(self) -> Tensor:
        """A mask [N] of the training samples that are held out from some phases (`Phase.samples`)."""
        return self.data.train.held_out()

    def fixed_steps(self, pools: np.ndarray) -> np.ndarray | None:
        """Return the numbers [m] of local steps per epoch, or None if the task does not fix them.

        `pools` [m] has the indices of the clients, or of pools of clients. A pool of n clients does
        ceil(`participation`·n) times as many steps as a single client. This is the number of its clients that would
        take part in a round without pools.
        """
        steps = self.settings.steps_per_epoch
        if steps is None:
            return None
        if self.method.pool is None:
            return np.full(len(pools), steps)
        clients = np.bincount(self.data.pool_of_client.cpu().numpy())[pools]
        return steps * np.ceil(self.settings.participation * clients).astype(np.int64)

    def held(self, pools: np.ndarray) -> Batch:
        """Return all training samples of m clients, or of pools of clients, with the indices `pools` [m]."""
        return self.data.train.of_clients(pools)

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, state: State, round: int, train_loss: float | None) -> Evaluation:
        """Evaluate clients on their own samples after a round.

        Without `sampled_evaluation`, all clients are evaluated. With it, a new random subset of the clients is
        evaluated after each scheduled round before the last, and all clients are evaluated after the last round.
        """
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
        has_samples = {"train": True, "test": bool(test.rows.any())}
        if data.validation is not None:
            validation = self.own_rows(state, data.validation, clients)
            metrics += self._summary("validation", validation)
            has_samples["validation"] = bool(validation.rows.any())
        routes = evaluate.served_routes(self.method, state, data.pool_of_client, data.clients, self.clusters)
        if routes is not None and not np.isfinite(routes).all():
            routes = None  # the run has diverged
        if routes is not None:
            scores = evaluate.route_metrics(
                routes, data.cluster.cpu().numpy(), data.train.count[data.pool_of_client.cpu().numpy()]
            )
            metrics += [("route", name, value) for name, value in scores.items()]
        losses = [value for split, metric, value in metrics if metric == "loss" and has_samples[split]]
        return Evaluation(metrics, routes, diverged=not all(abs(value) < DIVERGED_LOSS for value in losses))

    def official_scores(self, state: State, round: int) -> tuple[float, float]:
        """Return two versions of the published code's score: the mean over all clients, and over a random subset.

        The published code uses the subset. Both versions have the same expected value, but the subset adds a random
        deviation (0.8 percentage points per seed on the reduced MNIST tasks).
        """
        scores = self.own_rows(state, self.data.test, np.arange(self.data.clients))
        values = scores.loss if self.settings.loss == "mse" else scores.accuracy
        return scores.mean(values), scores.mean(values, self.evaluated_clients(round))

    def evaluated_clients(self, round: int) -> np.ndarray:
        """Return the random subset of clients that the published code evaluates after a round.

        It is drawn independently of the cohort.
        """
        size, count = self.data.clients, self.settings.cohort
        return seeds.sample(self.settings.seed, "evaluated clients", round, size=size, count=count)

    def global_test(self, state: State) -> tuple[evaluate.Scores, list[tuple[str, str, float]]]:
        """Evaluate each client's model on the global test set, under the shift of the client's true cluster.

        This is slow, so it is done only after the last round.
        """
        data = self.data
        scores = evaluate.on_global_test_set(
            self.method,
            state,
            data.global_test,
            data.test.decode,
            data.train,
            data.pool_of_client,
            data.cluster,
            loss=self.settings.loss,
            chunk=max(self.execution.chunk, MIN_EVALUATION_CHUNK),
            vectorised=self.execution.vectorised,
            map=self.workers.map,
        )
        return scores, self._summary("population", scores) + self._worst("population", scores)

    def own_rows(self, state: State, rows: Any, clients: np.ndarray) -> evaluate.Scores:
        """Return the scores of the given clients on their own samples of one split; `rows` has these samples."""
        return evaluate.on_own_rows(
            self.method,
            state,
            rows,
            self.data.train,
            self.data.pool_of_client,
            clients,
            loss=self.settings.loss,
            weighting=self.settings.weighting,
            batch=self.settings.batch,
            chunk=max(self.execution.chunk, MIN_EVALUATION_CHUNK),
            vectorised=self.execution.vectorised,
            map=self.workers.map,
        )

    def _summary(self, split: str, scores: evaluate.Scores) -> list[tuple[str, str, float]]:
        """Return the mean scores over the clients, as (split, metric, value).

        The metrics are accuracy, loss, top-5 accuracy and perplexity, but only those that exist for the task.
        """
        accuracy = [] if self.settings.loss == "mse" else [(split, "accuracy", scores.mean(scores.accuracy))]
        near = [] if np.isnan(scores.top5).all() else [(split, "top5_accuracy", scores.mean(scores.top5))]
        loss = scores.mean(scores.loss)
        per_token = self.settings.loss == "token_cross_entropy"
        return [
            *accuracy,
            (split, "loss", loss),
            *near,
            *([(split, "perplexity", evaluate.perplexity(loss))] if per_token else []),
        ]

    def _worst(self, split: str, scores: evaluate.Scores) -> list[tuple[str, str, float]]:
        """Return the lowest mean accuracy of a true cluster, and the mean accuracy of the worst 10 % of the clients.

        For regression, the scores are the highest mean loss of a true cluster, and the mean loss of the worst 10 %.
        """
        cluster = self.data.cluster.cpu().numpy()
        count = decile_count(len(cluster))
        if self.settings.loss == "mse":
            return [
                (split, "worst_cluster_loss", float(np.fmax.reduce(scores.by_cluster(scores.loss, cluster)))),
                (split, "worst_decile_loss", float(np.sort(scores.loss)[-count:].mean())),
            ]
        return [
            (split, "worst_cluster_accuracy", float(np.nanmin(scores.by_cluster(scores.accuracy, cluster)))),
            (split, "worst_decile_accuracy", float(np.sort(scores.accuracy)[:count].mean())),
        ]

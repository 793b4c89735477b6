"""The vocabulary: what a method states and what the engine reads. Nothing here computes.

Axes: K clients, M cohort, C clusters, B samples of a batch, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Loss = Literal["cross_entropy", "token_cross_entropy", "mse"]
"""Of text "token_cross_entropy": a row has T labels and outputs [T, classes], and loses their mean cross-entropy."""

Params = dict[str, Tensor]
"""Named tensors of one group, e.g. {"fc1.weight": ..., "fc1.bias": ...}."""

View = dict[str, Params]
"""What ONE client sees: group → its parameters, without a client axis; a CLUSTERED group keeps its axis C unless the
method has a `Routing.cluster_of_client`, in which case it is the slice of the client's own cluster."""

Noise = Mapping[str, Tensor]
"""Random inputs of one step, uniform on [0, 1), by name: made by the engine, so models call no random generator."""


class Refused(ValueError):
    """A method, adaptor or model cannot do what the task asks; the message gives the reason."""


class Scope(StrEnum):
    SHARED = "shared"
    """One value for all, averaged with p(k) ∝ n_k."""
    CLUSTERED = "clustered"
    """Leading axis C, cluster c averaged with p(k|c) ∝ n_k·π_kc."""
    PRIVATE = "private"
    """Leading axis K, stays with its client, written back only for the clients that took part."""
    FROZEN = "frozen"
    """Never trained, never sent."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A named group of parameters and who holds it.

    `init` returns the complete value: no leading axis (SHARED, FROZEN), axis C (CLUSTERED) or axis K (PRIVATE).
    `server_lr` None is the task's. A `statistic` (a running mean, a responsibility) is changed by the forward pass or
    by `Method.assign`, not by gradients; a `fixed` group (a given route) has values per client or cluster that never
    change.
    """

    scope: Scope
    init: Callable[[], Params]
    lr: float = 0.0
    server_lr: float | None = None
    statistic: bool = False
    fixed: bool = False

    @property
    def trained(self) -> bool:
        return not (self.scope is Scope.FROZEN or self.statistic or self.fixed)


@dataclass(frozen=True)
class Batch:
    """x [B, ...] decoded inputs, y [B] labels or [B, d] targets, mask [B]: 1 for a sample, 0 for padding."""

    x: Tensor
    y: Tensor
    mask: Tensor


class Predict(Protocol):
    def __call__(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """Logits [B, outputs] of one client on x [B, ...], and the statistics that the pass changed.

        `noise` None is evaluation: no noise, running statistics. `mask` [B] marks the samples that are no padding.
        """
        ...


Penalty = Callable[[View, View, Noise], Tensor]
"""(view, received view, draws) → a scalar added to the loss."""


SampleLoss = Callable[[View, View, Batch, Noise], tuple[Tensor, View]]
"""(view, received view, batch, draws) → loss [B] of each sample of one client, and the statistics that it changed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """A stretch of local training: which groups train, for how many epochs (None: the task's), and how.

    `predict` and `penalty` replace the method's own, for methods with a second model: Ditto trains the shared model on
    its own loss and the personal one near what was received.
    """

    train: tuple[str, ...]
    epochs: int | None = None
    predict: Predict | None = None
    penalty: Penalty | None = None
    when: Callable[[int, int], bool] | None = None
    """(round from 1, rounds in all) → whether the phase takes place; None: in every round. Groups that no phase of a
    round trains are neither averaged nor sent up in it, but for statistics and what `ServerStep.upload` makes."""
    floats_sent: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Group → floats (down, up) in rounds with this phase, in addition to `Cost.floats_sent`."""


Objective = Callable[[View, View, Batch, Noise], tuple[Tensor, View]]
"""(trained, fixed, batch, draws) → (loss, changed statistics) of one client on one batch."""

Assign = Callable[[View, Batch], View]
"""(view, all training rows) → new values of PRIVATE groups of one client at the start of its round."""

LocalStep = Callable[[Objective, View, View, Batch, Noise, Mapping[str, float]], tuple[View, View, Tensor]]
"""(objective, trained, fixed, batch, draws, lr by group) → (trained, changed statistics, loss)."""


@dataclass(frozen=True)
class ClientVectors:
    """One vector per client of a round, which the server reads one by one, not only in a sum.

    `clients` [M] are the clients of the round in the order of the cohort, `share` [M] their weights p(k), `vectors`
    [M, d] what they sent.
    """

    clients: Tensor
    share: Tensor
    vectors: Tensor


@dataclass(frozen=True, kw_only=True)
class ServerView:
    """A round as the server sees it after its optimiser's step; rounds count from 1.

    `before` has all groups complete (PRIVATE ones [K, ...] as their clients left them). `means` and `after` have the
    averaged groups of the round, before and after the optimiser's step.
    """

    round: int
    before: View
    means: View
    after: View
    client_vectors: ClientVectors | None


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """The server's step on g = old - mean (arXiv 2003.00295): SGD, whose lr 1 is plain averaging, SGD with momentum β1
    (FedAvgM, arXiv 1909.06335) or Adam with (β1, β2) and ε, by default PyTorch's and the published CIFAR-100 task's."""

    kind: Literal["sgd", "momentum", "adam"]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How clients belong to the clusters of CLUSTERED groups. A method without such groups needs nothing here.

    A CLUSTERED group that is averaged needs `log_route` or `cluster_of_client`.
    """

    log_route: Callable[[View], Tensor] | None = None
    """log π_k [C] of one client: the weight of its update in each cluster. The report shows it too."""
    served_log_route: Callable[[View], Tensor] | None = None
    """log π_k [C] for the report, where evaluation mixes by other weights than the server."""
    serves_one_cluster: bool = False
    """A client sees all clusters, but predicts with and sends at most one of them. Its costs count one."""
    cluster_of_client: Tensor | None = None
    """[K] the fixed cluster of each client, which then holds, trains and sends the slice of that cluster only."""
    clusters: int | None = None
    """C of the method's CLUSTERED groups. None: the task's number of clusters."""


@dataclass(frozen=True, kw_only=True)
class ServerStep:
    """What the server receives and does, where that is not FedAvg's mean and the task's optimiser."""

    upload: Mapping[str, Callable[[View], Params]] = field(default_factory=dict)
    """Averaged group → the parameters that a client sends for it after training, in place of its own values.
    FedSoft sends one model for all C clusters."""
    client_vector: Callable[[View], Tensor] | None = None
    """A vector [d] of each client after its training, which the server reads one by one, e.g. its update."""
    optimiser: Optimiser | None = None
    """The method's own server optimiser. None: the task's."""
    update: Callable[[ServerView], View] | None = None
    """Runs after the optimiser's step and returns complete values of any groups, which replace the present ones.
    Examples: exact products of factors, splits of clusters."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training costs a client, where that is not one pass of the task's model and the groups' own sizes."""

    passes_per_sample: float = 1.0
    """Cost of one sample in forward-backward passes of the task's own model, by multiply-adds."""
    assign_passes_per_sample: float = 0.0
    """Cost of `Method.assign` per training sample and round, in the same unit. A forward pass alone is 1/3."""
    floats_sent: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Group → floats (down, up) per client and round, where the scope does not say it. Router logits are PRIVATE, yet
    clients send them."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method: its groups of parameters and small functions for ONE client. Every default is FedAvg's."""

    groups: Mapping[str, Group]
    predict: Predict
    noise: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes of the random inputs of a step, by name; "batch" stands for B."""

    # local training
    phases: tuple[Phase, ...] | None = None
    """None: all trained groups train together for the task's epochs. (): nothing trains and there are no rounds."""
    loss: SampleLoss | None = None
    """Replaces the task's loss of `predict` in training, in phases without a prediction of their own."""
    penalty: Penalty | None = None
    """Added to the loss in every phase without a penalty of its own."""
    local_step: LocalStep | None = None
    """Replaces the SGD step on a batch: inner loops, mixed gradients, other optimisers."""
    precondition: Mapping[str, Callable[[Params, Params], Params]] = field(default_factory=dict)
    """Group → function of (its gradients, its values) that returns the gradients for the SGD step.

    The function is linear in the gradients: a step without samples then changes nothing, and gradients may be summed
    over clients first. Weight decay and clipping are not linear; write them as a penalty or a `local_step`."""
    preconditioner_inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group → further groups whose values its preconditioner also gets, e.g. the other factor. Its phases do not train
    them."""
    assign: Assign | None = None
    """Sets PRIVATE values of a client at the start of its round, without gradients: a cluster, responsibilities.

    It reads the client's view and ALL its training samples (decoded, not augmented; `mask` marks padding). Training,
    upload and later evaluations use the new values; `received` in a loss or a penalty holds the old ones."""

    # clusters, server, cost
    routing: Routing = Routing()
    server: ServerStep = ServerStep()
    cost: Cost = Cost()

    # before and after the rounds
    prepare: Callable[[Tensor, Tensor], View] | None = None
    """(x, y) of all training samples → initial values that replace those of `init`."""
    pool: Literal["all", "cluster"] | None = None
    """Trains on pooled data: of all clients, or of the clients of one true cluster. A pool sends nothing."""
    join: Callable[[View], View] | None = None
    """View of a client that joins after training → the PRIVATE values it starts with. None: those of `init`.
    A personal model that is held near the shared model starts at it."""

    @property
    def statistics(self) -> tuple[str, ...]:
        return tuple(name for name, group in self.groups.items() if group.statistic)

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(name for name, group in self.groups.items() if group.trained)

    def preconditioned_by(self, group: str) -> tuple[str, ...]:
        """The groups whose values the preconditioner of a group gets."""
        return (group, *self.preconditioner_inputs.get(group, ()))

    def changing(self, phases: tuple[Phase, ...]) -> tuple[str, ...]:
        """The groups that a round with these phases may change: trained ones, statistics, and what is uploaded."""
        trained = {group for phase in phases for group in phase.train}
        changing = trained | set(self.statistics) | set(self.server.upload)
        return tuple(name for name in self.groups if name in changing)

    @cached_property
    def _joint(self) -> tuple[Phase, ...]:
        return (Phase(train=self.trained),)

    def phases_of(self, round: int, rounds: int) -> tuple[Phase, ...]:
        """The phases of a round: those that take place in it, or the one that trains everything.

        Raises:
            ValueError: the method has phases, and none takes place.
        """
        if self.phases is None:
            return self._joint
        phases = tuple(phase for phase in self.phases if phase.when is None or phase.when(round, rounds))
        if self.phases and not phases:
            raise ValueError(f"no phase takes place in round {round} of {rounds}")
        return phases


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a task gives to a method: the model, the sizes, the rates, the fidelity switches and the seed."""

    build_model: Callable[..., Any]
    """`build_model(width=1.0)` → the task's model, its hidden layers widened by `width`."""
    clients: int
    cohort: int
    """Clients of one round."""
    clusters: int
    true_cluster: Tensor
    """[K]; for oracle methods and for the report only."""
    lr: float
    router_lr: float
    shape: tuple[int, ...]
    """Of one input."""
    outputs: int
    batch: int
    loss: Loss
    switches: Mapping[str, Any]
    seed: int
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

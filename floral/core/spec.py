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
method has a `member`, in which case it is the slice of the client's own cluster."""

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
    round trains are neither averaged nor sent up in it, but for statistics and what `upload` makes."""
    sends: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Floats (down, up) by group in rounds with this phase, beside `Method.sends`."""


Objective = Callable[[View, View, Batch, Noise], tuple[Tensor, View]]
"""(trained, fixed, batch, draws) → (loss, changed statistics) of one client on one batch."""

Assign = Callable[[View, Batch], View]
"""(view, all training rows) → new values of PRIVATE groups of one client at the start of its round."""

LocalStep = Callable[[Objective, View, View, Batch, Noise, Mapping[str, float]], tuple[View, View, Tensor]]
"""(objective, trained, fixed, batch, draws, lr by group) → (trained, changed statistics, loss)."""


@dataclass(frozen=True)
class Singles:
    """What the server sees of each client on its own: `vectors` [M, d] of the learners [M] of a round, in the order of
    the cohort, and their weights p(k) `share` [M]."""

    learners: Tensor
    share: Tensor
    vectors: Tensor


@dataclass(frozen=True, kw_only=True)
class Served:
    """A round, counted from 1, as the server sees it after its step: `before` has all groups complete (PRIVATE ones
    [K, ...] as their clients left them), `means` and `after` the averaged groups of the round before and after the
    optimiser's step."""

    round: int
    before: View
    means: View
    after: View
    singles: Singles | None


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """The server's step on g = old - mean (arXiv 2003.00295): SGD, whose lr 1 is plain averaging, SGD with momentum β1
    (FedAvgM, arXiv 1909.06335) or Adam with (β1, β2) and ε, by default PyTorch's and the published CIFAR-100 task's."""

    kind: Literal["sgd", "momentum", "adam"]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method is its groups and small functions for ONE client; every slot defaults to FedAvg's."""

    groups: Mapping[str, Group]
    predict: Predict
    assign: Assign | None = None
    """What a client computes at the start of its round, without gradients, from ALL its training rows (decoded, not
    augmented; `mask` tells padding) and what it sees: a chosen cluster, responsibilities. Training, upload and later
    evaluations use the new values; `received` in a loss or a penalty still holds the old ones."""
    assign_passes_per_sample: float = 0.0
    """Cost of `assign` per training row and round, in the unit of `passes_per_sample`; a forward pass alone is 1/3."""
    precondition: Mapping[str, Callable[[Params, Params], Params]] = field(default_factory=dict)
    """group → (its gradients, its values) → the gradients that the SGD step takes instead: a linear map of the
    gradients, so that a step without samples changes nothing and a sum over clients may be taken first. No weight decay
    and no clipping: these belong into a penalty or a `local_step`."""
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """group → further groups, which its phases do not train, whose values its preconditioner gets beside its own: the
    other factor."""
    local_step: LocalStep | None = None
    """What replaces the SGD step on a batch: inner loops, mixed gradients, other optimisers."""
    phases: tuple[Phase, ...] | None = None
    """None: all trained groups together for the task's epochs; (): nothing is trained and there are no rounds."""
    loss: SampleLoss | None = None
    """What replaces the task's loss of `predict` in training, in phases that have no prediction of their own."""
    penalty: Penalty | None = None
    """What is added to the loss in every phase that has none of its own."""
    log_route: Callable[[View], Tensor] | None = None
    """log π_k [C] of one client: the weight of its update in each cluster, and what the report shows."""
    served_log_route: Callable[[View], Tensor] | None = None
    """log π_k [C] that the report shows, where it is not the weight of the client's update."""
    picks: bool = False
    """A client sees all clusters, but serves and sends up no more than one slice of them; its costs count that."""
    upload: Mapping[str, Callable[[View], Params]] = field(default_factory=dict)
    """Averaged group → what a client sends for it after training in place of its own value: FedSoft's one model for all
    C, the product of two factors."""
    single: Callable[[View], Tensor] | None = None
    """A vector [d] that the server sees of each client on its own, after its training: an update to cluster by."""
    server: Callable[[Served], View] | None = None
    """Complete values of any groups that the server puts in place of what its step gave: exact products of factors,
    splits of clusters."""
    optimiser: Optimiser | None = None
    """The server's own; None: the task's."""
    member: Tensor | None = None
    """The fixed cluster of each client [K]: it then holds, trains and sends that cluster's slice only."""
    clusters: int | None = None
    """C of the method's CLUSTERED groups where it is not the task's."""
    prepare: Callable[[Tensor, Tensor], View] | None = None
    """(x, y) of all training rows → initial values that replace those of `init`."""
    pool: Literal["all", "cluster"] | None = None
    """Clients whose rows lie in one place: all, or those of one true cluster; such a learner sends nothing."""
    noise: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes of the random inputs of a step, "batch" for B."""
    sends: Mapping[str, tuple[int, int]] | None = None
    """Floats (down, up) by group, where the scopes do not say it: router logits are PRIVATE, yet sent up."""
    passes_per_sample: float = 1.0
    """What a sample costs its client, in forward-backward passes of the task's own model (by multiply-adds)."""
    join: Callable[[View], View] | None = None
    """What it sees → the values of PRIVATE groups with which a client begins that joins after training, where these are
    not those of `init`: a personal model that is held near the shared one begins at it."""

    @property
    def statistics(self) -> tuple[str, ...]:
        return tuple(name for name, group in self.groups.items() if group.statistic)

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(name for name, group in self.groups.items() if group.trained)

    def preconditioned_by(self, group: str) -> tuple[str, ...]:
        """The groups whose values the preconditioner of a group gets."""
        return (group, *self.beside.get(group, ()))

    def changing(self, phases: tuple[Phase, ...]) -> tuple[str, ...]:
        """The groups that a round with these phases may change: trained ones, statistics, and what is uploaded."""
        trained = {group for phase in phases for group in phase.train}
        return tuple(
            name for name, group in self.groups.items() if name in trained or group.statistic or name in self.upload
        )

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
        found = tuple(phase for phase in self.phases if phase.when is None or phase.when(round, rounds))
        if self.phases and not found:
            raise ValueError(f"no phase takes place in round {round} of {rounds}")
        return found


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

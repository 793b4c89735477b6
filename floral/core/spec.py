"""The types with which a method describes itself to the engine, the code that runs the rounds.

Letters for axes: K clients, M clients of a round (the cohort), C clusters, B samples of a batch, R rank.
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
"""The loss of a task. "token_cross_entropy" is for text: a sample has T labels and outputs [T, classes], and its loss
is the mean of their T cross-entropies."""

Params = dict[str, Tensor]
"""Named tensors of one group, e.g. {"fc1.weight": ..., "fc1.bias": ...}."""

View = dict[str, Params]
"""What ONE client sees: the parameters of each group, without a client axis. A CLUSTERED group keeps its axis C, unless
the method has `Routing.cluster_of_client`: then it holds the values of the client's own cluster only."""

Noise = Mapping[str, Tensor]
"""Random inputs of one local step by name, uniform on [0, 1). The engine makes them, so models call no random
generator."""


LOCAL_STATE = "local_state"
"""Name of the group with the values of `Method.local_state`."""
LEARNING_RATE = "learning_rate"
"""Name among the inputs of a local step of the factor that `Method.schedule` computes."""


class Refused(ValueError):
    """The error that is raised if a method, an adaptor or a model cannot do what the task requires.

    The message gives the reason.
    """


class Scope(StrEnum):
    """Who holds the values of a group of parameters: all clients together, each cluster, or each client.

    The scope also decides how the server averages the values.
    """

    SHARED = "shared"
    """All clients have the same value, averaged with weights p(k) ∝ n_k, the numbers of samples."""
    CLUSTERED = "clustered"
    """Each cluster c has a value (axis C), averaged with weights p(k|c) ∝ n_k·π_kc. Client k has the weight π_kc in
    cluster c."""
    PRIVATE = "private"
    """Each client has a value (axis K), which is not sent. It changes only in rounds in which the client takes part."""
    FROZEN = "frozen"
    """All clients have the same value, which is neither trained nor sent."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A named group of parameters: who holds it, its initial values, and how it is trained.

    `init` returns the initial values of all clients or clusters together. Their first axis is the C clusters if the
    scope is CLUSTERED, and the K clients if it is PRIVATE. Otherwise, there is no such axis. If `server_lr` is None,
    the task's server learning rate applies.

    If `statistic` is True, the group holds values such as a running mean. The forward pass, `Method.assign` or
    `Method.after_training` changes them, and they get no gradients. If `fixed` is True, each client or cluster has
    values that never change, for example cluster weights that the task gives.
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
    """A batch of B samples of one client.

    x [B, ...] holds the inputs of the model, and y the labels [B] or the targets [B, d] of a regression. mask [B] is 1
    for a sample and 0 for padding.
    """

    x: Tensor
    y: Tensor
    mask: Tensor


class Predict(Protocol):
    """A function that computes the predictions of one client."""

    def __call__(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """Return the logits [B, outputs] of one client for inputs x [B, ...], and the changed statistics.

        Statistics are values such as running means, which a training pass changes. If `noise` is None, the pass is an
        evaluation. It uses no random numbers, and normalises by running statistics. `mask` [B] is 1 for samples and 0
        for padding.
        """
        ...


Penalty = Callable[[View, View, Noise], Tensor]
"""(view, received view, noise) → a scalar that is added to the loss."""


SampleLoss = Callable[[View, View, Batch, Noise], tuple[Tensor, View]]
"""(view, received view, batch, noise) → the loss [B] of each sample of one client, and the changed statistics."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Phase:
    """A part of the local training of a round: which groups train, for how many epochs, and with which loss.

    If `epochs` is None, the task's number of epochs applies. A phase may have its own `predict` and `penalty`, which
    replace those of the method. For example, Ditto has two phases. The first trains the shared model. The second trains
    the personal model, with a penalty for its distance from the shared model that the client received.
    """

    train: tuple[str, ...]
    epochs: int | None = None
    predict: Predict | None = None
    penalty: Penalty | None = None
    when: Callable[[int, int], bool] | None = None
    """(round, number of rounds) → whether the phase takes place; None: in every round. Rounds are counted from 1.

    A group that no phase of a round trains is neither averaged nor sent to the server in this round, except for
    statistics and the groups of `ServerStep.upload`."""
    floats_sent: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Group → floats (down, up) in rounds with this phase, in addition to `Cost.floats_sent`."""
    samples: Literal["all", "held_out", "others"] = "all"
    """The training samples of a client that the phase uses: all, every fourth (held out), or all others.

    Batches are those of all samples; the samples that the phase does not use are masked."""


Objective = Callable[[View, View, Batch, Noise], tuple[Tensor, View]]
"""(trained groups, fixed groups, batch, noise) → (loss, changed statistics) of one client on one batch."""

Assign = Callable[[View, Batch], View]
"""(view, all training samples) → values of one client that replace those of the view."""

Adapted = Callable[[View], tuple[Params, Mapping[str, Params]]]
"""View of one client → (base, adaptors), if the client predicts with one low-rank adaptor in each adapted layer.

The base holds the parameters of the model that are not constant. `adaptors` maps a layer to its factors A [R, inputs,
…] and B [outputs, R, …], and to a bias [outputs] if there is one. The layer adds B A x + bias. A normalisation layer
has a change of its weight and bias instead."""

AfterTraining = Callable[[View, View, Batch], View]
"""(view, received view, all training samples) → values of one client that replace those of the view."""

LocalStep = Callable[[Objective, View, View, Batch, Noise, Mapping[str, float]], tuple[View, View, Tensor]]
"""(objective, trained groups, fixed groups, batch, noise, learning rates by group) → (new values of the trained groups,
changed statistics, loss)."""


Schedule = Callable[[Tensor, Tensor, int, int], Tensor]
"""(steps done in the phase [m], steps of the phase [m], round, rounds) → factor [m] of the learning rates of m clients.
Rounds are counted from 1."""


@dataclass(frozen=True)
class ClientVectors:
    """One vector from each client of a round, for a server step that needs more than the sum of the vectors.

    `clients` [M] holds the numbers of the round's clients, `share` [M] their weights in averages, and `vectors` [M, d]
    the vectors that they sent. The three tensors list the clients in the same order.
    """

    clients: Tensor
    share: Tensor
    vectors: Tensor


@dataclass(frozen=True, kw_only=True)
class ServerView:
    """What the server knows after the step of its optimiser in a round. Rounds are counted from 1.

    `before` holds all parameter groups as they were before the averaging. PRIVATE groups are [K, ...], with the values
    after the clients' training. `means` holds the averages of the groups that the round averages. `after` holds the
    same groups after the optimiser's step.
    """

    round: int
    before: View
    means: View
    after: View
    client_vectors: ClientVectors | None


class AllClients(Protocol):
    """All clients that have samples, before round 1. `Method.prepare` computes initial values with them."""

    def samples(self) -> tuple[Tensor, Tensor]:
        """Return the inputs x and the labels y of all training samples of all clients."""
        ...

    def assigned(self, start: View) -> View:
        """Return the PRIVATE values [M, ...] that `Method.assign` sets for the M clients, with the initial values
        `start`. Groups that are not in `start` have their values of `init`.
        """
        ...

    def mean_after(self, phase: Phase, vector: Callable[[View], Tensor]) -> Tensor:
        """Return the mean Σ_k p(k) vector(view of client k) after one round of local training with one phase.

        All clients train from the initial values. Nothing of this training is kept.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """The server optimiser, which uses the old value minus the clients' average as a gradient (arXiv 2003.00295).

    The kinds are SGD, SGD with momentum β1 (FedAvgM, arXiv 1909.06335), and Adam with β1, β2 and ε. SGD with learning
    rate 1 is plain averaging. The default β1, β2 and ε are those of PyTorch and of the published CIFAR-100 task.
    """

    kind: Literal["sgd", "momentum", "adam"]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The clusters to which a client belongs, and its weight in each of them.

    Routing concerns only groups of parameters with one value per cluster (scope CLUSTERED). A method without such
    groups leaves all fields at their defaults. A CLUSTERED group that is averaged needs `log_route` or
    `cluster_of_client`.
    """

    log_route: Callable[[View], Tensor] | None = None
    """log π_k [C] of one client: the weight of its update in each cluster. The report shows it too."""
    served_log_route: Callable[[View], Tensor] | None = None
    """log π_k [C] for the report, if a client predicts with other weights than those of its update."""
    serves_one_cluster: bool = False
    """Whether a client receives all clusters, but predicts with at most one of them and sends at most one. Its costs
    count one cluster."""
    cluster_of_client: Tensor | None = None
    """The fixed cluster [K] of each client. A client then holds, trains and sends the values of its cluster only."""
    clusters: int | None = None
    """C of the method's CLUSTERED groups. None: the task's number of clusters."""


@dataclass(frozen=True, kw_only=True)
class ServerStep:
    """What the server receives and does in a round, for methods that differ from FedAvg.

    The defaults are FedAvg's average and the task's server optimiser.
    """

    upload: Mapping[str, Callable[[View], Params]] = field(default_factory=dict)
    """Averaged group → the parameters that a client sends for it after training, in place of its own values.
    FedSoft sends one model for all C clusters."""
    client_vector: Callable[[View], Tensor] | None = None
    """A vector [d] of each client after its training, which the server reads one by one, e.g. its update."""
    optimiser: Optimiser | None = None
    """The method's own server optimiser. None: the task's."""
    update: Callable[[ServerView], View] | None = None
    """Runs after the optimiser's step and returns complete values of any groups, which replace the present ones.
    Examples: exact products of factors, splits of clusters.

    It may also change PRIVATE values of the round's clients, and its own memory, in place in `ServerView.before`."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the training costs a client, in computation and communication.

    Methods set this if the cost does not follow from their model and groups. The defaults are one forward-backward pass
    of the task's model per sample, and the sizes of the groups that are sent.
    """

    passes_per_sample: float = 1.0
    """Cost of one sample in forward-backward passes of the task's own model, by multiply-adds."""
    assign_passes_per_sample: float = 0.0
    """Cost of `Method.assign` and `Method.after_training` per training sample and round, in forward-backward passes. A
    forward pass is 1/3."""
    floats_sent: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Group → floats (down, up) per client and round, for groups whose scope does not determine them. For example,
    router logits are PRIVATE, but clients send them."""
    floats_served: Mapping[str, int] = field(default_factory=dict)
    """Group → floats that a client stores for its predictions, for groups whose size is not this number. For example, a
    client adds a PRIVATE difference to the base once and stores their sum, so the difference itself counts 0."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A federated method: its groups of parameters, and functions that are called for one client at a time.

    Fields that a method does not set are those of FedAvg.
    """

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
    local_state: Callable[[View], Params] | None = None
    """View of a client → values that `local_step` keeps from step to step of a round, such as moments.

    They start anew in each round, and are neither sent nor stored. `local_step` reads them in the group LOCAL_STATE of
    the fixed groups, and returns them among the changed statistics."""
    schedule: Schedule | None = None
    """Factor of the learning rates, which `local_step` reads as LEARNING_RATE of the noise."""
    needs_sgd: str | None = None
    """Why local training must make steps of SGD. None: a task may choose another optimiser."""
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
    after_training: AfterTraining | None = None
    """Computes values of a client at the end of its round, after its last local step and before its upload.

    It gets no gradients. The view holds the values after training, and the received view those at the start of the
    round, before `assign`. The samples are those of `assign`. The client keeps the new values of PRIVATE groups; those
    of SHARED and CLUSTERED groups are sent and averaged. All these groups are `statistic` or trained. Examples: control
    variates, prototypes."""
    before_predictions: Assign | None = None
    """Computes values with which a client predicts, from its view and all its training samples (as in `assign`).

    It runs at each evaluation, and what it computes is thrown away afterwards: nothing of it is kept or sent. It may
    replace groups (a fine-tuned copy of the model) or add groups that only `predict` reads (stored features). A client
    without samples gets a mask that is False everywhere. Costs do not count it. Phases with a prediction of their own,
    or a `loss`, train without these values."""

    adapted: Adapted | None = None
    """The base and the adaptors with which a client predicts, for export. None: the method has no adaptors, or weighs
    them for each sample."""

    # clusters, server, cost
    routing: Routing = Routing()
    server: ServerStep = ServerStep()
    cost: Cost = Cost()

    # before and after the rounds
    prepare: Callable[[AllClients], View] | None = None
    """(all clients) → initial values that replace those of `init`. It runs once, before round 1."""
    pool: Literal["all", "cluster"] | None = None
    """Train on the pooled data of all clients ("all"), or of the clients of each true cluster ("cluster"). None:
    without pools. A pool sends nothing."""
    join: Callable[[View], View] | None = None
    """View of a client that joins after training → the PRIVATE values it starts with. None: those of `init`.

    For example, a personal model with a penalty for its distance from the shared model starts as the shared model."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the groups that hold statistics, such as running means."""
        return tuple(name for name, group in self.groups.items() if group.statistic)

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the groups that are trained."""
        return tuple(name for name, group in self.groups.items() if group.trained)

    def preconditioned_by(self, group: str) -> tuple[str, ...]:
        """Return the names of the groups whose values the preconditioner of `group` needs.

        A preconditioner changes the gradients of a group before the SGD step. It needs the values of the group itself,
        and of the groups in its entry of `preconditioner_inputs`.
        """
        return (group, *self.preconditioner_inputs.get(group, ()))

    def preconditioned(
        self, gradients: View, values: View, lift: Callable[..., Any] = lambda function: function
    ) -> View:
        """Apply the preconditioners to the gradients of their groups, and return the gradients of all groups.

        `lift` changes each preconditioner before it is called, for example `torch.vmap`.
        """
        changed = dict(gradients)
        for group, change in self.precondition.items():
            if group in gradients:
                read = {n: t for name in self.preconditioned_by(group) for n, t in values[name].items()}
                changed[group] = lift(change)(gradients[group], read)
        return changed

    def changing(self, phases: tuple[Phase, ...]) -> tuple[str, ...]:
        """Return the names of the groups that a round with these phases may change.

        These are the groups that a phase trains, the statistics (such as running means), and the groups in
        `ServerStep.upload`, for which clients send other parameters than the group's own values.
        """
        trained = {group for phase in phases for group in phase.train}
        changing = trained | set(self.statistics) | set(self.server.upload)
        return tuple(name for name in self.groups if name in changing)

    @cached_property
    def _joint(self) -> tuple[Phase, ...]:
        return (Phase(train=self.trained),)

    def phases_of(self, round: int, rounds: int) -> tuple[Phase, ...]:
        """Return the phases that take place in a round.

        If the field `phases` is None, the result is one phase, which trains all trained groups.

        Raises:
            ValueError: the method has phases, but none takes place in this round.
        """
        if self.phases is None:
            return self._joint
        phases = tuple(phase for phase in self.phases if phase.when is None or phase.when(round, rounds))
        if self.phases and not phases:
            raise ValueError(
                f"no phase of the method takes place in round {round} of {rounds}; change the `when` of its phases"
            )
        return phases


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a task gives to a method: the model, the numbers of clients and clusters, the learning rates, the fidelity
    switches and the seed.

    A fidelity switch is a point in which the published code differs from the paper.
    """

    build_model: Callable[..., Any]
    """`build_model(width=1.0, trained=False)` → the task's model, its hidden layers widened by `width`.

    With `trained=True`, all parameters are trained, whatever the task's key `base` says."""
    clients: int
    cohort: int
    """Clients of one round."""
    clusters: int
    true_cluster: Tensor
    """The true cluster [K] of each client, for oracle methods and for the report only."""
    lr: float
    router_lr: float
    shape: tuple[int, ...]
    """Shape of one input."""
    outputs: int
    batch: int
    loss: Loss
    switches: Mapping[str, Any]
    seed: int
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    frozen_base: bool = False
    """Whether the task has `base: frozen`: the model's parameters are frozen, except those of its head."""

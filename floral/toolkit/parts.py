"""Building blocks that many methods use: initial parameters, predictions, local steps and losses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import (
    Batch,
    Group,
    LocalStep,
    Loss,
    Method,
    Noise,
    Objective,
    Params,
    Penalty,
    Phase,
    Predict,
    Problem,
    Refused,
    Scope,
    View,
)
from floral.core.streams import Stream
from floral.nn.layers import WEIGHT_LAYERS, Linear
from floral.nn.model import Model
from floral.toolkit.gradients import gradient_and_loss

# ------------------------------------------------------------------------------------------ initial values


def distinct_starts(init: Callable[[Stream], Params], stream: Stream, count: int, first: int = 0) -> Params:
    """Return `count` different sets of initial parameters, one for each cluster or client.

    The result contains one tensor per parameter name, with a leading axis of length `count`. Model 0 is `init(stream)`,
    drawn from the random stream `stream`. Each other model is drawn from a random stream of its own, which is derived
    from `stream`. The result has the models `first`, `first` + 1, and so on.
    """
    starts = [init(stream.at(holder) if holder else stream) for holder in range(first, first + count)]
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def repeated_start(start: Params, count: int) -> Params:
    """Return the same initial parameters for `count` clusters or clients.

    Every tensor has a leading axis of length `count`, and all entries along this axis are equal. They share their
    memory (`torch.Tensor.expand`), so they must be copied before one of them changes.
    """
    return {name: value.expand(count, *value.shape) for name, value in start.items()}


# ---------------------------------------------------------------------------------------------- one model


def model_groups(
    model: Model, scope: Scope, stream: Stream, lr: float, holders: int = 1, *, same_start: bool = False
) -> dict[str, Group]:
    """Return the initial parameters of a model that is trained once, or once for each cluster or client.

    The group "base" holds the parameters. With batch norm, the group "statistics" holds the running statistics.

    - Scope SHARED: one model for all clients.
    - Scope CLUSTERED: `holders` models, one per cluster. Their initial values differ, unless `same_start` is true.
    - Scope PRIVATE: `holders` models, one per client. All have the same initial values.
    """
    has_axis = scope in (Scope.CLUSTERED, Scope.PRIVATE)

    def start() -> Params:
        if scope is Scope.CLUSTERED and not same_start:
            return distinct_starts(model.init, stream, holders)
        return repeated_start(model.init(stream), holders) if has_axis else model.init(stream)

    groups = {"base": Group(scope=scope, init=start, lr=lr)}
    if running := model.statistics():
        groups["statistics"] = Group(
            scope=scope, init=lambda: repeated_start(running, holders) if has_axis else running, statistic=True
        )
    return groups


def predictor(model: Model, params: str = "base", running: str = "statistics") -> Predict:
    """Return the function that predicts with one model.

    `params` is the name of the group that holds the model's parameters. `running` is the name of the group that holds
    its running statistics. The default names are those of `model_groups`.
    """

    def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        logits, statistics = model(view[params], view.get(running, {}), x, noise, mask)
        return logits, {running: statistics} if statistics else {}

    return predict


# ----------------------------------------------------------------------------------------- personal models


def personal_groups(model: Model, stream: Stream, lr: float, clients: int) -> dict[str, Group]:
    """Return the initial parameters of personal models, one model per client. All clients have the same values.

    The PRIVATE group "personal" holds the parameters. With batch norm, the PRIVATE group "personal_statistics" holds
    the running statistics. These names leave "base" and "statistics" free for a shared model.
    """
    return renamed_groups("personal", model_groups(model, Scope.PRIVATE, stream, lr, holders=clients))


def renamed_groups(name: str, groups: Mapping[str, Group]) -> dict[str, Group]:
    """Rename the parameter groups of a model, so that a method can have a second model.

    "base" becomes `name`, and "statistics" becomes "<name>_statistics".
    """
    return {name if key == "base" else f"{name}_{key}": group for key, group in groups.items()}


def personal_predictor(model: Model) -> Predict:
    """Return the function that predicts with a client's personal model (see `personal_groups`)."""
    return predictor(model, "personal", "personal_statistics")


def proximal_penalty(group: str, weight: float, towards: str = "base") -> Penalty:
    """Return the penalty weight/2·‖w - w_received‖², which keeps the parameters w near the received w_received.

    w are the client's parameters during training, from the parameter group named by `group`. w_received are the
    parameters that the client received at the start of the round, from the group named by `towards`.
    """

    def penalty(view: View, received: View, noise: Noise) -> Tensor:
        del noise
        values, centre = view[group], received[towards]
        # Sorted: a checkpoint may restore the names in another order, and the order of a sum decides its last bit.
        return weight / 2 * torch.stack([(values[name] - centre[name]).square().sum() for name in sorted(values)]).sum()

    return penalty


def join_from(**source: str) -> Callable[[View], View]:
    """Return a function that copies parameters for a client that joins after training.

    Example: with `join_from(personal="base")`, the client's personal model (the group "personal") starts with the
    parameters of the shared model (the group "base"). The function is a value for `Method.join`.

    For a proximal penalty towards "base" this is the right start: a client without data minimises only the penalty,
    which is smallest at "base".
    """

    def join(view: View) -> View:
        return {group: view[start] for group, start in source.items() if group in view and start in view}

    return join


def begin_round_from(**source: str) -> Callable[[View, Batch], View]:
    """Return a function that copies received parameters to PRIVATE parameters at the start of a client's round.

    Example: with `begin_round_from(personal="base")`, the client's personal model (the group "personal") starts each
    round with the parameters of the received shared model (the group "base"). A client without samples keeps its
    values, because it does not train. The function is a value for `Method.assign`.
    """

    def assign(view: View, held: Batch) -> View:
        has_samples = held.mask.any()
        return {
            group: {name: torch.where(has_samples, view[start][name], old) for name, old in view[group].items()}
            for group, start in source.items()
            if group in view
        }

    return assign


# ------------------------------------------------------------------------------------------ private layers


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """A model in which some layers are PRIVATE and all other layers are SHARED.

    The PRIVATE layers have the same initial values for all clients. The running statistics of a batch norm layer are
    PRIVATE if the layer is PRIVATE, otherwise SHARED.

    The parameter groups are "base" (SHARED) and `name` (PRIVATE). With batch norm there are also "statistics" and
    "<name>_statistics".
    """

    model: Model
    private_layers: Collection[str]
    """Names of the PRIVATE layers."""
    name: str
    """Name of the group of the PRIVATE layers."""

    def _part(self, params: Params, private: bool) -> Params:
        """Return the parameters of the PRIVATE layers if `private` is true, otherwise those of the SHARED layers."""
        return {
            key: value for key, value in params.items() if (key.rsplit(".", 1)[0] in self.private_layers) == private
        }

    def groups(self, stream: Stream, lr: float, clients: int) -> dict[str, Group]:
        """Return the initial parameters in groups: those of the SHARED layers, and those of the PRIVATE layers.

        Together they are the initial parameters of one complete model.
        """

        def start(private: bool) -> Params:
            part = self._part(self.model.init(stream), private)
            return repeated_start(part, clients) if private else part

        groups = {
            "base": Group(scope=Scope.SHARED, init=lambda: start(False), lr=lr),
            self.name: Group(scope=Scope.PRIVATE, init=lambda: start(True), lr=lr),
        }
        shared, private = (self._part(self.model.statistics(), is_private) for is_private in (False, True))
        if shared:
            groups["statistics"] = Group(scope=Scope.SHARED, init=lambda: shared, statistic=True)
        if private:
            groups[f"{self.name}_statistics"] = Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(private, clients), statistic=True
            )
        return groups

    def predict(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """Predict with the SHARED layers and the client's own PRIVATE layers. Return the outputs and the new running
        statistics.
        """
        running = {group: view[group] for group in ("statistics", f"{self.name}_statistics") if group in view}
        statistics = {key: value for params in running.values() for key, value in params.items()}
        logits, changed = self.model({**view["base"], **view[self.name]}, statistics, x, noise, mask)
        return logits, {group: {key: changed[key] for key in params} for group, params in running.items()}


def with_private_statistics(method: Method, clients: int) -> Method:
    """Return the method with all running statistics of batch norm PRIVATE, so that each client keeps its own.

    All clients start with the same statistics. If a client receives the models of several clusters, it keeps separate
    statistics for each of these models. Scale and shift of batch norm do not become PRIVATE.

    The groups "statistics" and "<…>_statistics" become PRIVATE.

    Training steps do not read running statistics. So only two things change: the results of evaluations, and decisions
    for which a method evaluates models. With a single client nothing changes.

    Raises:
        Refused: the method averages no statistics, or it moves models between clients without their statistics.
    """
    averaged = (Scope.SHARED, Scope.CLUSTERED)
    running = {
        name: group for name, group in method.groups.items() if name.endswith("statistics") and group.scope in averaged
    }
    if not running:
        raise Refused(
            "the method averages no running statistics, so `statistics: private` changes nothing;"
            " set `statistics: federated`"
        )
    if method.server.update is not None and "statistics" in running and running["statistics"].scope is Scope.CLUSTERED:
        raise Refused(
            "the server of this method computes new models from those of the clusters, and needs averaged running"
            " statistics for the new models;"
            " set `statistics: federated`"
        )
    if running.keys() & method.server.upload.keys():
        raise Refused(
            "clients of this method upload the running statistics of their personal model as those of another model,"
            " so the server must average them;"
            " set `statistics: federated`"
        )

    cluster_of_client = method.routing.cluster_of_client

    def private(group: Group) -> Group:
        def start() -> Params:
            if group.scope is Scope.CLUSTERED and cluster_of_client is not None:
                return {name: value[cluster_of_client.cpu()] for name, value in group.init().items()}
            return repeated_start(group.init(), clients)

        return replace(group, scope=Scope.PRIVATE, init=start)

    return replace(method, groups=dict(method.groups) | {name: private(group) for name, group in running.items()})


def head_name(model: Model) -> str:
    """Return the name of the head, the last linear layer, which computes the outputs.

    Raises:
        Refused: the last layer that has weights is not linear, or shares its weights with the embedding, or is the only
            layer with weights, or is frozen.
    """
    weight_layers = [name for name, layer in model.layers.items() if isinstance(layer, WEIGHT_LAYERS)]
    head = model.head or next(reversed(weight_layers), None)
    if head is not None and getattr(model.layers[head], "tied", None):
        raise Refused(
            "the method needs a separate head, but the last layer shares its weights with the embedding;"
            " use a model with `tied: false`"
        )
    if head is None or len(weight_layers) < 2 or not isinstance(model.layers[head], Linear):
        raise Refused(
            "the method splits a model into a body and a head, but this model has no body before a last linear layer;"
            " choose another model"
        )
    if f"{head}.weight" in model.constants:
        raise Refused(f"the method trains the head {head}, but `freeze` names it; leave the head out of `freeze`")
    return head


def require_separate_samples(model: Model, layers: Collection[str], remedy: str) -> None:
    """Check that a method can weigh what it adds to the outputs of these layers for each sample.

    `remedy` says what the user may do about a layer with which it cannot.

    Raises:
        Refused: the model mixes samples, or the inputs of a layer have no axis on which the samples follow each other.
    """
    if model.mixes:
        raise Refused(
            "the method weighs parameters for each sample, but the module mixes the samples of a batch; change the "
            "module, or use another method"
        )
    if unordered := [name for name in layers if model.sample_axes.get(name, 0) is None]:
        raise Refused(
            f"the method weighs parameters for each sample, but no axis of the inputs of {unordered[0]} has the "
            f"samples of a batch in their order; change the module, or {remedy}"
        )


def body_model(model: Model) -> Model:
    """Return the model without its head, the last linear layer. It maps x to the features, the head's inputs [B, d].

    Raises:
        Refused: the model has no head.
    """
    return model.without(head_name(model))


# ------------------------------------------------------------------------------------------- size and cost

MAX_WIDTH = 64.0
"""Largest width that `model_of_size` tries, in multiples of the task's model."""


def model_of_size(problem: Problem, size: float, low: float) -> Model:
    """Return the task's model with all hidden layers widened or narrowed, so that it has at least `size` parameters.

    A width of 2 means hidden layers that are twice as wide as in the task. The smallest sufficient width above `low` is
    found by bisection.

    Raises:
        Refused: the model has no hidden layer, already has `size` parameters at width `low`, or would need a width
            above `MAX_WIDTH`.
    """
    high = MAX_WIDTH
    if problem.build_model(width=high).size < size:
        raise Refused(
            f"each model must have at least {size:g} parameters to be as large as FLoRAL, but it has fewer even at"
            f" {MAX_WIDTH:g} times its width; choose another model or a lower `rank`"
        )
    if (smallest := problem.build_model(width=low).size) >= size:
        raise Refused(
            f"each model must have about {size:g} parameters to be as large as FLoRAL, but even the narrowest has"
            f" {smallest}; choose another model or a higher `rank`"
        )
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if problem.build_model(width=middle).size >= size else (middle, high)
    return problem.build_model(width=high)


def forward_backward_passes(problem: Problem, *models: Model) -> float:
    """Return the cost of one training sample in all `models` together, divided by its cost in the task's model.

    The cost is the number of multiply-adds. For example, two models of the task's size give 2.
    """
    task_model = problem.build_model().multiply_adds(problem.shape, problem.batch)
    return sum(model.multiply_adds(problem.shape, problem.batch) for model in models) / task_model


# --------------------------------------------------------------------------------------------- local steps


def sgd_step() -> LocalStep:
    """Return the function that makes one SGD step w ← w - lr·g on one batch.

    w are the parameters, lr is the learning rate, and g is the gradient of the loss. Every method without a
    `local_step` of its own uses this step.
    """

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
    ) -> tuple[View, View, Tensor]:
        gradients, loss, changed = gradient_and_loss(objective)(trained, fixed, batch, noise)
        moved = {
            group: {name: value - lr[group] * gradients[group][name] for name, value in params.items()}
            for group, params in trained.items()
        }
        return moved, changed, loss

    return step


# ------------------------------------------------------------------------------------------ warm-up phases


def phases_with_warmup(*phases: Phase, warmup_phase: Phase, base: str, warmup: float) -> tuple[Phase, ...]:
    """Return the phases (parts of the local training) of a method that trains its base model always or only at first.

    - base="joint": the base model trains in all rounds. `phases` are returned unchanged.
    - base="warmup_freeze": in the first round(warmup·rounds) rounds, clients train only as in `warmup_phase`, usually
      FedAvg of the base model. In the later rounds they train as in `phases`, but the base model is fixed. The
      condition `when` of a later phase does not count the rounds of the warm-up.
    """
    if base == "joint":
        return phases

    def warmup_rounds(rounds: int) -> int:
        return round(warmup * rounds)

    def afterwards(phase: Phase) -> Phase:
        def when(now: int, rounds: int) -> bool:
            start = warmup_rounds(rounds)
            return now > start and (phase.when is None or phase.when(now - start, rounds - start))

        return replace(phase, train=tuple(group for group in phase.train if group != "base"), when=when)

    later = (afterwards(phase) for phase in phases)
    first = replace(warmup_phase, when=lambda now, rounds: now <= warmup_rounds(rounds))
    return first, *(phase for phase in later if phase.train)


def fedavg_phase(model: Model) -> Phase:
    """Return the description of local training as in FedAvg: all parameters of the model (the group "base") train."""
    return Phase(train=("base",), predict=predictor(model))


# -------------------------------------------------------------------------------------------------- losses


def sample_losses(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each sample [..., B].

    In classification it is the cross-entropy of the logits; for text, it is averaged over the sample's tokens. In
    regression it is the squared error averaged over the outputs.
    """
    if loss == "mse":
        return ((outputs - y) ** 2).mean(-1)
    losses = -F.log_softmax(outputs, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return losses.mean(-1) if loss == "token_cross_entropy" else losses


def outputs_of_each_model(model: Model) -> Callable[[View, Tensor, Noise | None, Tensor | None], tuple[Tensor, View]]:
    """Return a function that computes the outputs [C, B, outputs] of C models on the same inputs x [B, ...].

    The function also returns the new running statistics. The parameters must come from `model_groups` with `holders`
    = C. The random numbers for dropout must have the shapes that `noise_of_each_model` returns.
    """

    def outputs(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        dropout = None if noise is None else {name: noise[name] for name in model.noise}
        of_each = view["base"], view.get("statistics", {})
        if model.sequential is None:
            over_models = torch.vmap(model, in_dims=(0, 0, None, None if noise is None else 1, None))
            logits, statistics = over_models(*of_each, x, dropout, mask)
        else:
            logits, statistics = one_after_the_other(model, *of_each, x, dropout, mask)
        return logits, {"statistics": statistics} if statistics else {}

    return outputs


def one_after_the_other(
    model: Model, params: Params, statistics: Params, x: Tensor, noise: Noise | None, mask: Tensor | None
) -> tuple[Tensor, Params]:
    """Return what `torch.vmap` over C models returns, for a model that cannot be vectorised."""
    results = [
        model(
            {name: value[c] for name, value in params.items()},
            {name: value[c] for name, value in statistics.items()},
            x,
            None if noise is None else {name: drawn[:, c] for name, drawn in noise.items()},
            mask,
        )
        for c in range(len(next(iter(params.values()))))
    ]
    changed = {name: torch.stack([after[name] for _, after in results]) for name in statistics}
    return torch.stack([logits for logits, _ in results]), changed


def noise_of_each_model(model: Model, holders: int) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes of the random numbers that dropout needs if C = `holders` models get the same batch x.

    The random numbers of a dropout layer have the shape [B, C, ...] for B samples.
    """
    return {name: (batch, holders, *shape) for name, (batch, *shape) in model.noise.items()}

"""Building blocks of methods: groups of parameters, predictions, local steps, phases and losses."""

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
from floral.nn.layers import WEIGHT_LAYERS, Call, Linear, Model

# ------------------------------------------------------------------------------------------ initial values


def distinct_starts(init: Callable[[Stream], Params], stream: Stream, count: int) -> Params:
    """Different initial parameters for `count` clusters or clients, with leading axis `count`.

    The first one equals `init(stream)`.
    """
    starts = [init(stream.at(holder) if holder else stream) for holder in range(count)]
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def repeated_start(start: Params, count: int) -> Params:
    """The same initial parameters for `count` clusters or clients, with leading axis `count`.

    The values are expanded, not copied; the engine makes the copies.
    """
    return {name: value.expand(count, *value.shape) for name, value in start.items()}


# ---------------------------------------------------------------------------------------------- one model


def model_groups(
    model: Model, scope: Scope, stream: Stream, lr: float, holders: int = 1, *, same_start: bool = False
) -> dict[str, Group]:
    """The groups of one model: "base" and, with batch norm, "statistics".

    - SHARED: one model.
    - CLUSTERED: `holders` models with different starts, or with `same_start` one common start.
    - PRIVATE: `holders` models, one per client, with one common start.
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
    """Return the prediction of one model, whose groups are those of `model_groups` or the named groups."""

    def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        logits, statistics = model(view[params], view.get(running, {}), x, noise, mask)
        return logits, {running: statistics} if statistics else {}

    return predict


# ----------------------------------------------------------------------------------------- personal models


def personal_groups(model: Model, stream: Stream, lr: float, clients: int) -> dict[str, Group]:
    """The groups of a second model that each client has for itself, with one common start.

    They are PRIVATE "personal" and, with batch norm, "personal_statistics".
    """
    return renamed_groups("personal", model_groups(model, Scope.PRIVATE, stream, lr, holders=clients))


def renamed_groups(name: str, groups: Mapping[str, Group]) -> dict[str, Group]:
    """The groups of `model_groups` for a second model, renamed to `name` and "<name>_statistics"."""
    return {name if key == "base" else f"{name}_{key}": group for key, group in groups.items()}


def personal_predictor(model: Model) -> Predict:
    """The prediction of a client's personal model, the groups of `personal_groups`."""
    return predictor(model, "personal", "personal_statistics")


def proximal_penalty(group: str, weight: float, towards: str = "base") -> Penalty:
    """The penalty weight/2·‖w - w_received‖² on the group `group`.

    w_received is the group `towards` as the client received it at the start of the round.
    """

    def penalty(view: View, received: View, noise: Noise) -> Tensor:
        del noise
        values, centre = view[group], received[towards]
        # Sorted: a checkpoint may restore the names in another order, and the order of a sum decides its last bit.
        return weight / 2 * torch.stack([(values[name] - centre[name]).square().sum() for name in sorted(values)]).sum()

    return penalty


def join_from(**source: str) -> Callable[[View], View]:
    """A `Method.join`: a client that joins after training starts its PRIVATE groups at the values of other groups.

    Example: `join_from(personal="base")` starts "personal" at "base". With no data, the proximal penalty is minimised
    by the group that it pulls towards, so this is the start for a client without data.
    """

    def join(view: View) -> View:
        return {group: view[start] for group, start in source.items() if group in view and start in view}

    return join


def begin_round_from(**source: str) -> Callable[[View, Batch], View]:
    """A `Method.assign`: PRIVATE groups start each round of a client at the received values of other groups.

    Example: `begin_round_from(personal="base")`. A client without samples keeps its values, because it does not train.
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
    """One model with some PRIVATE layers, including their running statistics; all other layers are SHARED.

    Groups: "base" (SHARED) and `name` (PRIVATE with one common start); with batch norm also "statistics" and
    "<name>_statistics".
    """

    model: Model
    private_layers: Collection[str]
    """Names of the PRIVATE layers."""
    name: str
    """Name of the group of the PRIVATE layers."""

    def _part(self, params: Params, private: bool) -> Params:
        """The parameters of the PRIVATE layers, or those of the SHARED layers."""
        return {
            key: value for key, value in params.items() if (key.rsplit(".", 1)[0] in self.private_layers) == private
        }

    def groups(self, stream: Stream, lr: float, clients: int) -> dict[str, Group]:
        """The groups of the SHARED and the PRIVATE layers; together they start as one model."""

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
        """The prediction of the SHARED layers together with the client's PRIVATE layers."""
        running = {group: view[group] for group in ("statistics", f"{self.name}_statistics") if group in view}
        statistics = {key: value for params in running.values() for key, value in params.items()}
        logits, changed = self.model({**view["base"], **view[self.name]}, statistics, x, noise, mask)
        return logits, {group: {key: changed[key] for key in params} for group, params in running.items()}


def with_private_statistics(method: Method, clients: int) -> Method:
    """Make all running statistics of batch norm PRIVATE: groups "statistics" and "<…>_statistics".

    They have one common start and stay with their client, for every cluster that it holds. Scales and shifts do not
    change.

    Training does not read running statistics. So only evaluations differ, and decisions that a method bases on them.
    With one client nothing differs.

    Raises:
        Refused: no statistics are averaged, or the method moves models between clients without their statistics.
    """
    averaged = (Scope.SHARED, Scope.CLUSTERED)
    running = {
        name: group for name, group in method.groups.items() if name.endswith("statistics") and group.scope in averaged
    }
    if not running:
        raise Refused("no running statistics are averaged, so none can be kept private; set statistics: federated")
    if method.server.update is not None and "statistics" in running and running["statistics"].scope is Scope.CLUSTERED:
        raise Refused(
            "its server builds models from other models, which needs averaged statistics; set statistics: federated"
        )
    if running.keys() & method.server.upload.keys():
        raise Refused(
            "a client uploads statistics that are not its own, which needs averaged ones; set statistics: federated"
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
    """The name of the head: the last linear layer, which computes the outputs.

    Raises:
        Refused: the last layer with weights is tied or not linear, or no layer with weights comes before it.
    """
    weight_layers = [name for name, layer in model.layers.items() if isinstance(layer, WEIGHT_LAYERS)]
    if weight_layers and getattr(model.layers[weight_layers[-1]], "tied", None):
        raise Refused(
            "the last layer shares its weights with the embedding, so there is no separate head; use an untied model"
        )
    if len(weight_layers) < 2 or not isinstance(model.layers[weight_layers[-1]], Linear):
        raise Refused(
            "the model has no body before a last linear layer: with a private head nothing would be shared;"
            " choose another model"
        )
    return weight_layers[-1]


def body_model(model: Model) -> Model:
    """The model without its head: x → the features [B, inputs of the head].

    Raises:
        Refused: the model has no head.
    """
    last = head_name(model)

    def forward(call: Call, x: Tensor) -> Tensor:
        return model.forward(lambda name, x: x if name == last else call(name, x), x)

    return Model(layers={name: layer for name, layer in model.layers.items() if name != last}, forward=forward)


# ------------------------------------------------------------------------------------------- size and cost

MAX_WIDTH = 64.0
"""Largest width that `model_of_size` tries, in multiples of the task's model."""


def model_of_size(problem: Problem, size: float, low: float) -> Model:
    """The task's model at the smallest width above `low` with at least `size` parameters, found by bisection.

    Raises:
        Refused: the model has no hidden layer, already has `size` parameters at width `low`, or would need a width
        above
            `MAX_WIDTH`.
    """
    high = MAX_WIDTH
    if problem.build_model(width=high).size < size:
        raise Refused(
            f"no width up to {MAX_WIDTH:g} gives the model {size:g} parameters; choose another model or a lower rank"
        )
    if (smallest := problem.build_model(width=low).size) >= size:
        raise Refused(
            f"the model has {smallest} parameters at the smallest width, but at most {size:g} are allowed;"
            " choose another model or a higher rank"
        )
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if problem.build_model(width=middle).size >= size else (middle, high)
    return problem.build_model(width=high)


def forward_backward_passes(problem: Problem, *models: Model) -> float:
    """The cost of one sample in all these models, in forward-backward passes of the task's model.

    Counted in multiply-adds.
    """
    task_model = problem.build_model().multiply_adds(problem.shape, problem.batch)
    return sum(model.multiply_adds(problem.shape, problem.batch) for model in models) / task_model


# --------------------------------------------------------------------------------------------- local steps


def sgd_step() -> LocalStep:
    """The SGD step w ← w - lr·g on one batch: the engine's default as a `Method.local_step`."""

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
    ) -> tuple[View, View, Tensor]:
        gradients, (loss, changed) = torch.func.grad(with_loss(objective), has_aux=True)(trained, fixed, batch, noise)
        moved = {
            group: {name: value - lr[group] * gradients[group][name] for name, value in params.items()}
            for group, params in trained.items()
        }
        return moved, changed, loss

    return step


def with_loss(objective: Objective) -> Callable[..., tuple[Tensor, tuple[Tensor, View]]]:
    """Return an objective for `torch.func.grad(has_aux=True)`.

    It returns the loss twice, because `grad` drops the value of the objective.
    """

    def with_value(trained: View, fixed: View, batch: Batch, noise: Noise) -> tuple[Tensor, tuple[Tensor, View]]:
        loss, changed = objective(trained, fixed, batch, noise)
        return loss, (loss.detach(), changed)

    return with_value


# ------------------------------------------------------------------------------------------ warm-up phases


def phases_with_warmup(*phases: Phase, warmup_phase: Phase, base: str, warmup: float) -> tuple[Phase, ...]:
    """The phases of a method whose group "base" is trained in all rounds or only in a warm-up.

    - base="joint": `phases` as they are.
    - base="warmup_freeze": the first R0 = round(warmup·rounds) rounds have only `warmup_phase`, usually FedAvg of the
      base. The later rounds have `phases` without the base, and their `when` counts rounds from R0 on.
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
    """The phase of FedAvg: train the group "base", which holds one model."""
    return Phase(train=("base",), predict=predictor(model))


# -------------------------------------------------------------------------------------------------- losses


def sample_losses(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample, [..., B].

    It is the cross-entropy of logits (for text, its mean over the sample's tokens) or the squared error averaged over
    the outputs.
    """
    if loss == "mse":
        return ((outputs - y) ** 2).mean(-1)
    losses = -F.log_softmax(outputs, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return losses.mean(-1) if loss == "token_cross_entropy" else losses


def outputs_of_each_model(model: Model) -> Callable[[View, Tensor, Noise | None, Tensor | None], tuple[Tensor, View]]:
    """The outputs [C, B, outputs] of C models on the same x [B, ...], and the statistics after the pass.

    The models are the groups of `model_groups` with C holders. Their noise has the shapes of `noise_of_each_model`.
    """

    def outputs(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        dropout = None if noise is None else {name: noise[name] for name in model.noise}
        over_models = torch.vmap(model, in_dims=(0, 0, None, None if noise is None else 1, None))
        logits, statistics = over_models(view["base"], view.get("statistics", {}), x, dropout, mask)
        return logits, {"statistics": statistics} if statistics else {}

    return outputs


def noise_of_each_model(model: Model, holders: int) -> dict[str, tuple[int | str, ...]]:
    """Shapes of the random inputs of C models on the same x: a dropout layer has [B, C, ...]."""
    return {name: (batch, holders, *shape) for name, (batch, *shape) in model.noise.items()}

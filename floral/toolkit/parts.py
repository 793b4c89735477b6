"""Small strategies that methods share: who starts how, how a step is taken, what a sample loses."""

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

# ------------------------------------------------------------------------------------------- who starts how


def distinct(init: Callable[[Stream], Params], stream: Stream, count: int) -> Params:
    """`count` holders, each with a start of its own: leading axis `count`. Holder 0 starts as `init(stream)` does."""
    starts = [init(stream.at(holder) if holder else stream) for holder in range(count)]
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def same(start: Params, count: int) -> Params:
    """`count` holders with one common start: leading axis `count`, expanded: the engine makes the copies."""
    return {name: value.expand(count, *value.shape) for name, value in start.items()}


# ---------------------------------------------------------------------------------------- one whole model


def whole(
    model: Model, scope: Scope, stream: Stream, lr: float, holders: int = 1, *, alike: bool = False
) -> dict[str, Group]:
    """The groups of a whole model, "base" and (with batch norm) "statistics": SHARED, one per cluster with distinct
    starts (CLUSTERED; `alike` with a common one), or one per client with a common start (PRIVATE)."""
    many = scope in (Scope.CLUSTERED, Scope.PRIVATE)

    def start() -> Params:
        if scope is Scope.CLUSTERED and not alike:
            return distinct(model.init, stream, holders)
        return same(model.init(stream), holders) if many else model.init(stream)

    groups = {"base": Group(scope=scope, init=start, lr=lr)}
    if running := model.statistics():
        groups["statistics"] = Group(
            scope=scope, init=lambda: same(running, holders) if many else running, statistic=True
        )
    return groups


def serve(model: Model, params: str = "base", running: str = "statistics") -> Predict:
    """The prediction of one whole model, the groups of `whole`, or those named."""

    def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        logits, statistics = model(view[params], view.get(running, {}), x, noise, mask)
        return logits, {running: statistics} if statistics else {}

    return predict


# ------------------------------------------------------------------------------------- a model of one's own


def personal(model: Model, stream: Stream, lr: float, clients: int) -> dict[str, Group]:
    """The groups of a second whole model, one per client from a common start: PRIVATE "personal" and (with batch norm)
    "personal_statistics"."""
    return second("personal", whole(model, Scope.PRIVATE, stream, lr, holders=clients))


def second(name: str, groups: Mapping[str, Group]) -> dict[str, Group]:
    """The groups of `whole` under the names that a second model has: `name` and "<name>_statistics"."""
    return {name if group == "base" else f"{name}_{group}": held for group, held in groups.items()}


def serve_personal(model: Model) -> Predict:
    """The prediction of a client's own model, the groups of `personal`."""
    return serve(model, "personal", "personal_statistics")


def proximal(group: str, weight: float, towards: str = "base") -> Penalty:
    """weight/2·‖w - w_received‖²: w is the client's `group`, w_received the group `towards` as the round began."""

    def penalty(view: View, received: View, noise: Noise) -> Tensor:
        del noise
        own, centre = view[group], received[towards]
        # sorted: a checkpoint gives the names back in another order, and the order of a sum decides its last bit
        return weight / 2 * torch.stack([(own[name] - centre[name]).square().sum() for name in sorted(own)]).sum()

    return penalty


def join_at(**centre: str) -> Callable[[View], View]:
    """A client that joins after training begins each PRIVATE group named at the present value of another: where a
    penalty holds it near that, it is what no rows give, for the penalty alone is least there."""

    def join(view: View) -> View:
        return {group: view[other] for group, other in centre.items() if group in view and other in view}

    return join


def begin_at(**source: str) -> Callable[[View, Batch], View]:
    """Each PRIVATE group named begins a client's round at the received value of another; an `assign`."""

    def assign(view: View, held: Batch) -> View:
        some = held.mask.any()  # a client without rows does not train
        return {
            group: {name: torch.where(some, view[other][name], old) for name, old in view[group].items()}
            for group, other in source.items()
            if group in view
        }

    return assign


# ---------------------------------------------------------------------------------- layers of a client's own


@dataclass(frozen=True, kw_only=True)
class Divided:
    """One model of which some layers are a client's own, statistics included; the others are shared by all.

    Groups: "base" SHARED, `name` PRIVATE with a common start; "statistics" and "<name>_statistics" with batch norm.
    """

    model: Model
    layers: Collection[str]
    """The names of the PRIVATE layers."""
    name: str

    def _part(self, params: Params, own: bool) -> Params:
        return {key: value for key, value in params.items() if (key.rsplit(".", 1)[0] in self.layers) == own}

    def groups(self, stream: Stream, lr: float, clients: int) -> dict[str, Group]:
        """Who holds what; all start as one whole model does."""

        def start(own: bool) -> Params:
            part = self._part(self.model.init(stream), own)
            return same(part, clients) if own else part

        groups = {
            "base": Group(scope=Scope.SHARED, init=lambda: start(False), lr=lr),
            self.name: Group(scope=Scope.PRIVATE, init=lambda: start(True), lr=lr),
        }
        shared, private = (self._part(self.model.statistics(), own) for own in (False, True))
        if shared:
            groups["statistics"] = Group(scope=Scope.SHARED, init=lambda: shared, statistic=True)
        if private:
            groups[f"{self.name}_statistics"] = Group(
                scope=Scope.PRIVATE, init=lambda: same(private, clients), statistic=True
            )
        return groups

    def predict(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """The shared layers with the client's own in their places."""
        running = {group: view[group] for group in ("statistics", f"{self.name}_statistics") if group in view}
        statistics = {key: value for params in running.values() for key, value in params.items()}
        logits, changed = self.model({**view["base"], **view[self.name]}, statistics, x, noise, mask)
        return logits, {group: {key: changed[key] for key in params} for group, params in running.items()}


def with_private_statistics(method: Method, clients: int) -> Method:
    """The method whose running statistics of batch norm, "statistics" and "<…>_statistics", are all PRIVATE: they start
    alike and stay with their client, of every cluster that it holds; scales and shifts stay as they were.

    Training does not read them, so only evaluations differ, and what a method decides by evaluating. With one client
    nothing differs.

    Raises:
        Refused: none are averaged, or the method hands models on in a way in which they would not follow.
    """
    averaged = (Scope.SHARED, Scope.CLUSTERED)
    running = {
        name: group for name, group in method.groups.items() if name.endswith("statistics") and group.scope in averaged
    }
    if not running:
        raise Refused("no running statistics are averaged, so none can be kept private; set statistics: federated")
    if method.server.update is not None and "statistics" in running and running["statistics"].scope is Scope.CLUSTERED:
        raise Refused("its server makes models out of others, with their statistics; set statistics: federated")
    if running.keys() & method.server.upload.keys():
        raise Refused("a client sends another model than its own, with its statistics; set statistics: federated")

    cluster_of_client = method.routing.cluster_of_client

    def kept(group: Group) -> Group:
        def start() -> Params:
            if group.scope is Scope.CLUSTERED and cluster_of_client is not None:
                return {name: value[cluster_of_client.cpu()] for name, value in group.init().items()}
            return same(group.init(), clients)

        return replace(group, scope=Scope.PRIVATE, init=start)

    return replace(method, groups=dict(method.groups) | {name: kept(group) for name, group in running.items()})


def head(model: Model) -> str:
    """The name of the last linear layer, which gives the outputs.

    Raises:
        Refused: no layer with weights stands before it.
    """
    weighty = [name for name, layer in model.layers.items() if isinstance(layer, WEIGHT_LAYERS)]
    if weighty and getattr(model.layers[weighty[-1]], "tied", None):
        raise Refused("the last layer shares its weights with the embedding: there is no head to tell from the body")
    if len(weighty) < 2 or not isinstance(model.layers[weighty[-1]], Linear):
        raise Refused("the model has no body before a last linear layer: with a private head nothing would be shared")
    return weighty[-1]


def body(model: Model) -> Model:
    """The model below its `head`: x → the features [B, head's inputs] that the head gets.

    Raises:
        Refused: the model has no head.
    """
    last = head(model)

    def forward(call: Call, x: Tensor) -> Tensor:
        return model.forward(lambda name, x: x if name == last else call(name, x), x)

    return Model(layers={name: layer for name, layer in model.layers.items() if name != last}, forward=forward)


# ----------------------------------------------------------------------------------------- how large it is

WIDEST = 64.0
"""The search for a width ends here."""


def of_size(problem: Problem, size: float, low: float) -> Model:
    """The narrowest of the task's models, from width `low` on, with at least `size` parameters, found by bisection.

    Raises:
        Refused: the model has no hidden layer, has as many parameters at width `low`, or no width up to 64 suffices.
    """
    high = WIDEST
    if problem.build_model(width=high).size < size:
        raise Refused(f"no width up to {WIDEST:g} times the model's own reaches {size:g} parameters")
    if (least := problem.build_model(width=low).size) >= size:
        raise Refused(f"the narrowest model has {least} parameters, and {size:g} are to be reached from below")
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if problem.build_model(width=middle).size >= size else (middle, high)
    return problem.build_model(width=high)


def forward_backward_passes(problem: Problem, *models: Model) -> float:
    """What a sample costs in all of these models, in passes of the task's own, by multiply-adds."""
    own = problem.build_model().multiply_adds(problem.shape, problem.batch)
    return sum(model.multiply_adds(problem.shape, problem.batch) for model in models) / own


# ------------------------------------------------------------------------------------- how a step is taken


def sgd() -> LocalStep:
    """One SGD step on a batch, w ← w - lr·g: the engine's default, written as a method's own step is."""

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
    """The objective in the form that `grad(has_aux=True)` wants: the loss twice, to keep its value."""

    def both(trained: View, fixed: View, batch: Batch, noise: Noise) -> tuple[Tensor, tuple[Tensor, View]]:
        loss, changed = objective(trained, fixed, batch, noise)
        return loss, (loss.detach(), changed)

    return both


# ------------------------------------------------------------------------------------- a base that freezes


def staged(*phases: Phase, warm: Phase, base: str, warmup: float) -> tuple[Phase, ...]:
    """The phases of a method whose "base" is trained all along (`base="joint"`), or first alone and then never again.

    "warmup_freeze": in the first R0 = round(warmup·rounds) rounds only the phase `warm` takes place, FedAvg of the base
    as a rule; in the others the given ones, without the base. For their `when` rounds begin anew after R0.
    """
    if base == "joint":
        return phases

    def first(rounds: int) -> int:
        return round(warmup * rounds)

    def afterwards(phase: Phase) -> Phase:
        def when(now: int, rounds: int) -> bool:
            start = first(rounds)
            return now > start and (phase.when is None or phase.when(now - start, rounds - start))

        return replace(phase, train=tuple(group for group in phase.train if group != "base"), when=when)

    rest = (afterwards(phase) for phase in phases)
    return replace(warm, when=lambda now, rounds: now <= first(rounds)), *(phase for phase in rest if phase.train)


def plain(model: Model) -> Phase:
    """FedAvg of the group "base", a whole model."""
    return Phase(train=("base",), predict=serve(model))


# ------------------------------------------------------------------------------------------ what a sample loses


def sample_losses(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """Loss of each sample [..., B]: cross-entropy of logits, for text its mean over the sample's tokens, or the squared
    error averaged over the outputs."""
    if loss == "mse":
        return ((outputs - y) ** 2).mean(-1)
    each = -F.log_softmax(outputs, -1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return each.mean(-1) if loss == "token_cross_entropy" else each


def of_each_model(model: Model) -> Callable[[View, Tensor, Noise | None, Tensor | None], tuple[Tensor, View]]:
    """(view, x [B, ...], draws, mask) → outputs [C, B, outputs] of C whole models on the same x, and their statistics.

    Its groups are those of `whole` with C holders, its draws those of `noise_of_each_model`.
    """

    def outputs(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        dropout = None if noise is None else {name: noise[name] for name in model.noise}
        over_models = torch.vmap(model, in_dims=(0, 0, None, None if noise is None else 1, None))
        found, statistics = over_models(view["base"], view.get("statistics", {}), x, dropout, mask)
        return found, {"statistics": statistics} if statistics else {}

    return outputs


def noise_of_each_model(model: Model, holders: int) -> dict[str, tuple[int | str, ...]]:
    """Shapes of the draws of C models on the same x: dropout named d has [B, C, ...]."""
    return {name: (batch, holders, *shape) for name, (batch, *shape) in model.noise.items()}

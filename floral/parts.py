"""Small strategies that methods share: who starts how, how a step is taken, how a mixture is routed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from floral.layers import Model
from floral.spec import Batch, Draws, Group, LocalStep, Objective, Params, Predict, Problem, Scope, View
from floral.streams import Stream

# ------------------------------------------------------------------------------------------- who starts how


def distinct(init: Callable[[Stream], Params], stream: Stream, count: int) -> Params:
    """`count` holders, each with a start of its own: leading axis `count`. Holder 0 starts as `init(stream)` does."""
    starts = [init(stream.at(holder) if holder else stream) for holder in range(count)]
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def same(start: Params, count: int) -> Params:
    """`count` holders with one common start: leading axis `count`, expanded: the engine makes the copies."""
    return {name: value.expand(count, *value.shape) for name, value in start.items()}


# ---------------------------------------------------------------------------------------- one whole model


def whole(model: Model, scope: Scope, stream: Stream, lr: float, holders: int = 1) -> dict[str, Group]:
    """The groups of a whole model, "base" and (with batch norm) "statistics": SHARED, one per cluster with distinct
    starts (CLUSTERED), or one per client with a common start (PRIVATE)."""

    def start() -> Params:
        match scope:
            case Scope.CLUSTERED:
                return distinct(model.init, stream, holders)
            case Scope.PRIVATE:
                return same(model.init(stream), holders)
            case _:
                return model.init(stream)

    groups = {"base": Group(scope=scope, init=start, lr=lr)}
    if running := model.statistics():
        many = scope in (Scope.CLUSTERED, Scope.PRIVATE)
        groups["statistics"] = Group(
            scope=scope, init=lambda: same(running, holders) if many else running, statistic=True
        )
    return groups


def serve(model: Model) -> Predict:
    """The prediction of one whole model, the groups of `whole`."""

    def predict(view: View, x: Tensor, draws: Draws | None, mask: Tensor | None) -> tuple[Tensor, View]:
        logits, statistics = model(view["base"], view.get("statistics", {}), x, draws, mask)
        return logits, {"statistics": statistics} if statistics else {}

    return predict


# ------------------------------------------------------------------------------------- how a step is taken


def sgd() -> LocalStep:
    """One SGD step on a batch, w ← w - lr·g: the engine's default, written as a method's own step is."""

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, draws: Draws, lr: Mapping[str, float]
    ) -> tuple[View, View, Tensor]:
        gradients, (loss, changed) = torch.func.grad(with_loss(objective), has_aux=True)(trained, fixed, batch, draws)
        moved = {
            group: {name: value - lr[group] * gradients[group][name] for name, value in params.items()}
            for group, params in trained.items()
        }
        return moved, changed, loss

    return step


def with_loss(objective: Objective) -> Callable[..., tuple[Tensor, tuple[Tensor, View]]]:
    """The objective in the form that `grad(has_aux=True)` wants: the loss twice, to keep its value."""

    def both(trained: View, fixed: View, batch: Batch, draws: Draws) -> tuple[Tensor, tuple[Tensor, View]]:
        loss, changed = objective(trained, fixed, batch, draws)
        return loss, (loss.detach(), changed)

    return both


# --------------------------------------------------------------------------------- how a mixture is routed

CERTAIN = 100.0
"""Gap of the logits of a fixed route: softmax gives 1 and about 4e-44."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """C logits θ_k per client that mix clusters: π_k = softmax((θ_k + noise·u)/temperature).

    u ~ U[0, 1)^C once per batch in training, 0 in evaluation. "learned" starts uniform and trains by SGD; "optimal"
    names the client's true cluster and "random" one drawn at the start, both fixed.
    """

    kind: str
    problem: Problem
    temperature: float = 1.0
    noise: float = 1.0

    @property
    def groups(self) -> dict[str, Group]:
        """The PRIVATE group "router" [K, C]."""
        fixed = self.kind != "learned"
        return {"router": Group(scope=Scope.PRIVATE, init=self._start, lr=self.problem.router_lr, fixed=fixed)}

    def _start(self) -> Params:
        clients, clusters = self.problem.clients, self.problem.clusters
        if self.kind == "learned":
            return {"logits": torch.zeros(clients, clusters)}
        return {"logits": fixed_logits(self.fixed, clusters)}

    @property
    def fixed(self) -> Tensor:
        """The cluster [K] that a fixed route names."""
        match self.kind:
            case "optimal":
                return self.problem.true_cluster
            case "random":
                stream = Stream(self.problem.seed, "random route")
                return stream.integers("cluster", self.problem.clients, self.problem.clusters).to(self.problem.device)
        raise ValueError(f"router {self.kind!r} is not fixed")

    @property
    def draws(self) -> dict[str, tuple[int | str, ...]]:
        learned = self.kind == "learned" and self.noise > 0
        return {"router": (self.problem.clusters,)} if learned else {}

    @property
    def sends(self) -> dict[str, tuple[int, int]]:
        """A learned route is sent up: the server weighs with it."""
        return {"router": (0, self.problem.clusters if self.kind == "learned" else 0)}

    def forward(self, view: View, draws: Draws | None) -> Tensor:
        """π_k [C] as the forward pass mixes."""
        logits = view["router"]["logits"]
        if draws is not None and "router" in draws:
            logits = logits + self.noise * draws["router"]
        return torch.softmax(logits / self.temperature, dim=-1)

    def log_route(self, view: View) -> Tensor:
        """log π_k [C] as the server weighs with it: no noise, and no temperature under the official switch."""
        plain = self.problem.switches["aggregation_route"] == "plain"
        return torch.log_softmax(view["router"]["logits"] / (1.0 if plain else self.temperature), dim=-1)


def fixed_logits(cluster: Tensor, clusters: int) -> Tensor:
    """Router logits [K, C] that name one cluster each: 0 there, -100 elsewhere."""
    hit = torch.nn.functional.one_hot(cluster.cpu(), clusters).float()
    return CERTAIN * (hit - 1)


def entropy(route: Tensor) -> Tensor:
    """H(π) = -Σ_c π_c log π_c in nats of a route [..., C]; 0·log 0 = 0."""
    return torch.special.entr(route).sum(-1)

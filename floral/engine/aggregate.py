"""The server: weighted means by scope, chunk by chunk, then one step of the server's optimiser."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from floral.core.spec import Method, Optimiser, Refused, Scope, View
from floral.engine.state import State

EMPTY_CLUSTER_SHARE = 1e-6
"""A cluster whose share Σ_k p(k) π_kc of a round is below this has no mass."""


@dataclass(frozen=True)
class Relative:
    """Weights p(k)·π_kc of a chunk's clients in its clusters, over the largest of each cluster.

    A hard route (π ≈ 4e-44) then neither underflows nor makes denormal numbers: p(k|c) is a softmax over k of
    log p(k) + log π_kc, and a softmax does not mind a constant.
    """

    weight: Tensor
    """[m, C] exp(log p(k) + log π_kc - top_c), in [0, 1]."""
    top: Tensor
    """[C] the largest logarithm."""

    @classmethod
    def of(cls, share: Tensor, log_route: Tensor) -> Relative:
        """From p(k) [m] and log π [m, C]."""
        log_weight = share.double().log()[:, None] + log_route.double()
        top = log_weight.amax(0)
        return cls(torch.exp(log_weight - finite(top)), top)


def finite(top: Tensor) -> Tensor:
    """A maximum of logarithms, 0 where nobody has any weight."""
    return torch.where(top == -math.inf, 0.0, top)


@dataclass
class Mean:
    """Weighted sums of a round: SHARED with p(k) ∝ n_k, CLUSTERED with p(k)·π_kc, relative to `top`, over its clients.

    Sums of several chunks are added; `result` divides by the mass of each cluster.
    """

    sums: View = field(default_factory=dict)
    top: Tensor | None = None
    """[C] the largest log weight."""
    mass: Tensor | None = None
    """[C] Σ_k exp(log weight - top)."""

    def add(self, other: Mean, method: Method) -> None:
        """Add the sums of further clients, in place."""
        ours = theirs = None
        if other.top is not None and other.mass is not None:
            if self.top is None or self.mass is None:
                self.top, self.mass = other.top, other.mass
            else:
                top = torch.maximum(self.top, other.top)
                ours, theirs = torch.exp(self.top - finite(top)), torch.exp(other.top - finite(top))
                self.top, self.mass = top, self.mass * ours + other.mass * theirs
        for name, params in other.sums.items():
            if name not in self.sums:
                self.sums[name] = params
                continue
            for key, value in params.items():
                if ours is None or theirs is None or method.groups[name].scope is Scope.SHARED:
                    self.sums[name][key].add_(value)
                else:
                    self.sums[name][key].mul_(along(ours, value)).addcmul_(value, along(theirs, value))

    def result(self, empty_cluster: Literal["keep", "average"], method: Method) -> tuple[View, Tensor | None]:
        """The mean of every SHARED and CLUSTERED group, and which clusters [C] keep their value for want of mass.

        With "average" only a cluster without any weight keeps it; else the relative weights decide, however small.
        """
        if self.mass is None or self.top is None:
            return self.sums, None
        mass = self.mass
        share = torch.where(mass > 0, self.top.exp() * mass, 0.0)
        kept = mass == 0 if empty_cluster == "average" else share < EMPTY_CLUSTER_SHARE
        divisor = torch.where(mass > 0, mass, 1.0)
        means = {
            name: params
            if method.groups[name].scope is Scope.SHARED
            else {key: value / along(divisor, value) for key, value in params.items()}
            for name, params in self.sums.items()
        }
        return means, kept


def weights(method: Method, share: Tensor, log_route: Tensor | None, members: Tensor | None, clusters: int) -> Relative:
    """The weights of a chunk in the clusters: by its fixed members [m], or by its routes [m, C]."""
    if members is not None:
        one = torch.where(members[:, None] == torch.arange(clusters, device=members.device), 0.0, -math.inf)
        return Relative.of(share, one)
    assert log_route is not None, "a CLUSTERED group needs routing.log_route or routing.cluster_of_client"
    return Relative.of(share, log_route)


def sum_over_clients(
    method: Method, values: View, groups: Collection[str], share: Tensor, relative: Relative | None
) -> View:
    """Σ_k p(k) w_k of SHARED groups and Σ_k weight_kc w_kc of CLUSTERED ones, from values with a client axis."""
    sums: View = {}
    for name in groups:
        match method.groups[name].scope:
            case Scope.SHARED:
                sums[name] = {key: torch.tensordot(share.to(t.dtype), t, 1) for key, t in values[name].items()}
            case Scope.CLUSTERED:
                assert relative is not None
                weight, fixed = relative.weight, method.routing.cluster_of_client is not None
                sums[name] = {key: cluster_sum(weight, t, fixed) for key, t in values[name].items()}
    return sums


def cluster_sum(weight: Tensor, tensor: Tensor, fixed: bool) -> Tensor:
    """Σ_k weight[k, c]·tensor[k, c] over a chunk: from [m, C, ...], or [m, ...] where clients have a fixed cluster."""
    weight = weight.to(tensor.dtype)
    return torch.tensordot(weight.mT, tensor, 1) if fixed else torch.einsum("kc,kc...->c...", weight, tensor)


def along(vector: Tensor, like: Tensor) -> Tensor:
    """A vector [C] shaped to multiply a tensor [C, ...]."""
    vector = vector if vector.dtype is torch.bool else vector.to(like.dtype)
    return vector.reshape(-1, *(1,) * (like.dim() - 1))


def server_step(optimiser: Optimiser, state: State, means: View, kept: Tensor | None, method: Method) -> View:
    """New values of the groups in `means`; the clusters in `kept` keep theirs, statistics take the mean."""
    after: View = {}
    for name, params in means.items():
        group = method.groups[name]
        lr = optimiser.lr if group.server_lr is None else group.server_lr
        held = kept if group.scope is Scope.CLUSTERED and kept is not None and bool(kept.any()) else None
        for key, mean in params.items():
            old = state.values[name][key]
            moments = Moments(state.server, f"{name}/{key}", held)
            if group.statistic:
                new = mean
            elif optimiser.kind == "adam":
                new = old - lr * moments.adam(optimiser, old - mean, group.scope is Scope.CLUSTERED)
            elif optimiser.kind == "momentum":
                new = old - lr * moments.momentum(optimiser, old - mean)
            else:
                new = mean if lr == 1.0 else old + lr * (mean - old)
            after.setdefault(name, {})[key] = unless(held, new, old)
    return after


def replace_values(state: State, values: View) -> None:
    """Put complete values in the place of the server's, in the names' order of the state.

    Raises:
        Refused: a group lies in the file of large PRIVATE groups, of which single rows change alone.
    """
    for name, params in values.items():
        if state.store is not None and name in state.store.values:
            raise Refused(f"the server replaces the PRIVATE group {name!r}, which is too large to be held in memory")
        for key, value in params.items():
            state.values[name][key] = value


@dataclass(frozen=True)
class Moments:
    """Running moments of one tensor's pseudo-gradient; a cluster's are its own, and stay while it keeps its value."""

    kept: dict[str, Tensor]
    """All moments of the server, by name."""
    key: str
    held: Tensor | None
    """The clusters [C] that keep their value."""

    def momentum(self, optimiser: Optimiser, gradient: Tensor) -> Tensor:
        """v ← β1 v + g."""
        before = self.kept.get(f"{self.key}/first", torch.zeros_like(gradient))
        self.kept[f"{self.key}/first"] = unless(self.held, optimiser.betas[0] * before + gradient, before)
        return self.kept[f"{self.key}/first"]

    def adam(self, optimiser: Optimiser, gradient: Tensor, clustered: bool) -> Tensor:
        """m̂/(√v̂ + ε), the unbiased moments; a cluster's steps are counted apart."""
        steps = self.kept.get(
            f"{self.key}/steps",
            torch.zeros(len(gradient) if clustered else 1, dtype=torch.float64, device=gradient.device),
        )
        steps = self.kept[f"{self.key}/steps"] = steps + (1 if self.held is None else (~self.held).to(steps.dtype))
        unbiased = []
        for order, beta, power in zip(("first", "second"), optimiser.betas, (gradient, gradient**2), strict=True):
            before = self.kept.get(f"{self.key}/{order}", torch.zeros_like(gradient))
            self.kept[f"{self.key}/{order}"] = unless(self.held, beta * before + (1 - beta) * power, before)
            unbiased.append(self.kept[f"{self.key}/{order}"] / along(1 - beta**steps, gradient))
        return unbiased[0] / (unbiased[1].sqrt() + optimiser.epsilon)


def unless(held: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new`, but `old` for the clusters [C] that are held."""
    return new if held is None else torch.where(along(held, old), old, new)


class HasValues(Protocol):
    """What local training gives back."""

    @property
    def values(self) -> View: ...


def write_back(state: State, method: Method, trained: HasValues, pools: Tensor) -> None:
    """PRIVATE groups return to the learners [m] that took part; all others keep theirs."""
    for name, params in trained.values.items():
        if method.groups[name].scope is Scope.PRIVATE:
            for key, value in params.items():
                own = state.values[name][key]
                own.index_copy_(0, pools.to(own.device), value.to(own.device))
    if state.store is not None:
        state.store.mark(pools)

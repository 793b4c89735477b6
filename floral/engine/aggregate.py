"""Aggregation on the server: weighted means of the groups, summed chunk by chunk, and the server optimiser's step."""

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
"""A cluster is empty in a round if its share Σ_k p(k) π_kc is below this."""


@dataclass(frozen=True)
class Relative:
    """Weights p(k)·π_kc of a chunk's clients in each cluster, divided by the largest weight of the cluster.

    The division avoids underflow and denormal numbers for hard routes (π ≈ 4e-44). It changes no mean: p(k|c) is a
    softmax over k of log p(k) + log π_kc, and adding a constant to all logarithms does not change a softmax.
    """

    weight: Tensor
    """[m, C] exp(log p(k) + log π_kc - top_c), in [0, 1]."""
    top: Tensor
    """[C] max_k of log p(k) + log π_kc."""

    @classmethod
    def of(cls, share: Tensor, log_route: Tensor) -> Relative:
        """Compute the relative weights from p(k) [m] and log π [m, C]."""
        log_weight = share.double().log()[:, None] + log_route.double()
        top = log_weight.amax(0)
        return cls(torch.exp(log_weight - finite(top)), top)


def finite(top: Tensor) -> Tensor:
    """Replace -∞, the maximum of logarithms when all weights are 0, by 0."""
    return torch.where(top == -math.inf, 0.0, top)


@dataclass
class Mean:
    """Weighted sums of parameters over the clients of a round.

    SHARED groups are weighted with p(k) ∝ n_k, CLUSTERED groups with p(k)·π_kc / exp(top_c). `add` adds the sums of
    another chunk. `result` divides by the mass of each cluster.
    """

    sums: View = field(default_factory=dict)
    top: Tensor | None = None
    """[C] max_k of the log weights."""
    mass: Tensor | None = None
    """[C] Σ_k exp(log weight - top)."""

    def add(self, chunk: Mean, method: Method) -> None:
        """Add the sums of further clients, in place."""
        scale = chunk_scale = None
        if chunk.top is not None and chunk.mass is not None:
            if self.top is None or self.mass is None:
                self.top, self.mass = chunk.top, chunk.mass
            else:
                top = torch.maximum(self.top, chunk.top)
                scale, chunk_scale = torch.exp(self.top - finite(top)), torch.exp(chunk.top - finite(top))
                self.top, self.mass = top, self.mass * scale + chunk.mass * chunk_scale
        for name, params in chunk.sums.items():
            if name not in self.sums:
                self.sums[name] = params
                continue
            for key, value in params.items():
                if scale is None or chunk_scale is None or method.groups[name].scope is Scope.SHARED:
                    self.sums[name][key].add_(value)
                else:
                    self.sums[name][key].mul_(along(scale, value)).addcmul_(value, along(chunk_scale, value))

    def result(self, empty_cluster: Literal["keep", "average"], method: Method) -> tuple[View, Tensor | None]:
        """The mean of every SHARED and CLUSTERED group, and a mask [C] of the empty clusters, which keep their values.

        With "keep", a cluster is empty if its share is below EMPTY_CLUSTER_SHARE. With "average", it is empty only if
        all its weights are 0.
        """
        if self.mass is None or self.top is None:
            return self.sums, None
        mass = self.mass
        share = torch.where(mass > 0, self.top.exp() * mass, 0.0)
        empty = mass == 0 if empty_cluster == "average" else share < EMPTY_CLUSTER_SHARE
        divisor = torch.where(mass > 0, mass, 1.0)
        means = {
            name: params
            if method.groups[name].scope is Scope.SHARED
            else {key: value / along(divisor, value) for key, value in params.items()}
            for name, params in self.sums.items()
        }
        return means, empty


def weights(method: Method, share: Tensor, log_route: Tensor | None, members: Tensor | None, clusters: int) -> Relative:
    """Weights of a chunk's clients in the clusters, from their fixed clusters `members` [m] or log routes [m, C]."""
    if members is not None:
        log_one_hot = torch.where(members[:, None] == torch.arange(clusters, device=members.device), 0.0, -math.inf)
        return Relative.of(share, log_one_hot)
    assert log_route is not None, "a CLUSTERED group needs routing.log_route or routing.cluster_of_client"
    return Relative.of(share, log_route)


def sum_over_clients(
    method: Method, values: View, groups: Collection[str], share: Tensor, relative: Relative | None
) -> View:
    """Sum values with a client axis: Σ_k p(k) w_k for SHARED groups, Σ_k weight_kc w_kc for CLUSTERED groups."""
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
    """Σ_k weight[k, c]·tensor[k, c] over a chunk.

    The tensor is [m, C, ...], or [m, ...] if each client has a `fixed` cluster.
    """
    weight = weight.to(tensor.dtype)
    return torch.tensordot(weight.mT, tensor, 1) if fixed else torch.einsum("kc,kc...->c...", weight, tensor)


def along(vector: Tensor, like: Tensor) -> Tensor:
    """Reshape a vector [C] so that it multiplies the tensor `like` [C, ...]."""
    vector = vector if vector.dtype is torch.bool else vector.to(like.dtype)
    return vector.reshape(-1, *(1,) * (like.dim() - 1))


def server_step(optimiser: Optimiser, state: State, means: View, empty: Tensor | None, method: Method) -> View:
    """New values of the groups in `means`, after the server optimiser's step.

    Clusters in the mask `empty` [C] keep their values. Statistics are set to their mean.
    """
    after: View = {}
    for name, params in means.items():
        group = method.groups[name]
        lr = optimiser.lr if group.server_lr is None else group.server_lr
        held = empty if group.scope is Scope.CLUSTERED and empty is not None and bool(empty.any()) else None
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
    """Replace groups of the state by complete new values; the order of the state's names stays the same.

    Raises:
        Refused: a group lies in the file of large PRIVATE groups, which can only be changed row by row.
    """
    for name, params in values.items():
        if state.store is not None and name in state.store.values:
            raise Refused(f"the server replaces the PRIVATE group {name!r}, which is too large to be held in memory")
        for key, value in params.items():
            state.values[name][key] = value


@dataclass(frozen=True)
class Moments:
    """Running moments of one tensor's pseudo-gradient. The moments of empty clusters do not change."""

    server: dict[str, Tensor]
    """All moments of the server, by name."""
    key: str
    held: Tensor | None
    """Mask [C] of the empty clusters, which keep their values."""

    def momentum(self, optimiser: Optimiser, gradient: Tensor) -> Tensor:
        """Update and return the momentum, v ← β1 v + g."""
        before = self.server.get(f"{self.key}/first", torch.zeros_like(gradient))
        self.server[f"{self.key}/first"] = unless(self.held, optimiser.betas[0] * before + gradient, before)
        return self.server[f"{self.key}/first"]

    def adam(self, optimiser: Optimiser, gradient: Tensor, clustered: bool) -> Tensor:
        """Update the moments and return Adam's step m̂/(√v̂ + ε); each cluster counts its own steps."""
        steps = self.server.get(
            f"{self.key}/steps",
            torch.zeros(len(gradient) if clustered else 1, dtype=torch.float64, device=gradient.device),
        )
        steps = self.server[f"{self.key}/steps"] = steps + (1 if self.held is None else (~self.held).to(steps.dtype))
        unbiased = []
        for order, beta, power in zip(("first", "second"), optimiser.betas, (gradient, gradient**2), strict=True):
            before = self.server.get(f"{self.key}/{order}", torch.zeros_like(gradient))
            self.server[f"{self.key}/{order}"] = unless(self.held, beta * before + (1 - beta) * power, before)
            unbiased.append(self.server[f"{self.key}/{order}"] / along(1 - beta**steps, gradient))
        return unbiased[0] / (unbiased[1].sqrt() + optimiser.epsilon)


def unless(held: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new`, but `old` for the clusters in the mask `held` [C]."""
    return new if held is None else torch.where(along(held, old), old, new)


class HasValues(Protocol):
    """A result of local training, with the trained values."""

    @property
    def values(self) -> View: ...


def write_back(state: State, method: Method, trained: HasValues, pools: Tensor) -> None:
    """Write trained PRIVATE values [m, ...] into the rows `pools` [m] of the state; other rows do not change."""
    for name, params in trained.values.items():
        if method.groups[name].scope is Scope.PRIVATE:
            for key, value in params.items():
                stored = state.values[name][key]
                stored.index_copy_(0, pools.to(stored.device), value.to(stored.device))
    if state.store is not None:
        state.store.mark(pools)

"""The server's part of a round: it averages the clients' parameters, and then does a step of the server optimiser.

The averages are weighted. The weighted sums are added up chunk by chunk; a chunk is a set of clients that train
together.
"""

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
    """The weights p(k)·π_kc of a chunk's clients k in each cluster c, divided by the largest of them in the cluster.

    p(k) is the weight of client k in the round. π_kc is its route to cluster c, i.e. the weight of cluster c in its
    model. The division avoids underflow, because a route can be as small as 4e-44. The division does not change the
    weighted means, because it divides the weighted sums and the sums of the weights by the same number.
    """

    weight: Tensor
    """[m, C] exp(log p(k) + log π_kc - top_c), in [0, 1]."""
    top: Tensor
    """[C] max_k of log p(k) + log π_kc."""

    @classmethod
    def of(cls, share: Tensor, log_route: Tensor) -> Relative:
        """Compute the relative weights of m clients from their weights p(k) [m] and their log routes [m, C]."""
        log_weight = share.double().log()[:, None] + log_route.double()
        top = log_weight.amax(0)
        return cls(torch.exp(log_weight - finite(top)), top)


def finite(top: Tensor) -> Tensor:
    """Return `top`, the largest log weight of each cluster, with 0 in place of -∞ (all weights are 0)."""
    return torch.where(top == -math.inf, 0.0, top)


@dataclass
class Mean:
    """Weighted sums of parameters over the clients of a round, from which the means are computed.

    SHARED groups are weighted with p(k), the share of client k in the samples of the round. CLUSTERED groups are
    weighted with p(k)·π_kc / exp(top_c), where π_kc is the route of client k to cluster c, and top_c is the largest log
    weight of the cluster. `add` adds the sums of another chunk of clients. `result` divides the sums of each cluster by
    the sum of its weights.
    """

    sums: View = field(default_factory=dict)
    top: Tensor | None = None
    """[C] max_k of the log weights."""
    mass: Tensor | None = None
    """[C] Σ_k exp(log weight - top)."""

    def add(self, chunk: Mean, method: Method) -> None:
        """Add the sums of another chunk of clients, in place."""
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
        """Return the means of all SHARED and CLUSTERED groups, and a mask [C] that is True for empty clusters.

        The server keeps the old values of empty clusters. With `empty_cluster` "keep", a cluster is empty if the
        weights of its clients sum to less than EMPTY_CLUSTER_SHARE. With "average", it is empty only if all these
        weights are 0. The mask is None if no group has clusters.
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
    """Return the weights p(k)·π_kc of a chunk's clients k in each cluster c, divided by the cluster's largest weight.

    `share` [m] has the clients' weights p(k) in the round. π_kc is the route of client k to cluster c, and `log_route`
    [m, C] has the logarithms of the routes. If the method fixes the cluster of each client, `members` [m] has the
    indices of these clusters instead.
    """
    if members is not None:
        log_one_hot = torch.where(members[:, None] == torch.arange(clusters, device=members.device), 0.0, -math.inf)
        return Relative.of(share, log_one_hot)
    assert log_route is not None, "a CLUSTERED group needs routing.log_route or routing.cluster_of_client"
    return Relative.of(share, log_route)


def sum_over_clients(
    method: Method, values: View, groups: Collection[str], share: Tensor, relative: Relative | None
) -> View:
    """Return the weighted sums of some groups of parameters over a chunk's clients.

    `groups` has the names of the groups, and `values` has their values for each client, with a client axis. SHARED
    groups are weighted with `share`, the weight p(k) of each client. CLUSTERED groups are weighted with `relative`, the
    weight of each client in each cluster.
    """
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
    """Return, for each cluster c, the sum over a chunk's clients k of weight[k, c] · tensor[k, c].

    The tensor is [m, C, ...] for m clients and C clusters. With `fixed`, it is [m, ...], because each client holds the
    values of one cluster only.
    """
    weight = weight.to(tensor.dtype)
    return torch.tensordot(weight.mT, tensor, 1) if fixed else torch.einsum("kc,kc...->c...", weight, tensor)


def along(vector: Tensor, like: Tensor) -> Tensor:
    """Reshape a vector [C] to [C, 1, ...], so that it can be multiplied with the tensor `like` [C, ...]."""
    vector = vector if vector.dtype is torch.bool else vector.to(like.dtype)
    return vector.reshape(-1, *(1,) * (like.dim() - 1))


def server_step(optimiser: Optimiser, state: State, means: View, empty: Tensor | None, method: Method) -> View:
    """Return the new values of the groups in `means`, after the update of the server optimiser.

    Empty clusters (True in the mask `empty` [C]) keep their old values. Statistics, such as the running means of batch
    norm, are set to their mean over the clients; the optimiser does not change them.
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
    """Replace the values of some groups in the state by `values`. The order of the names in the state stays the same.

    Each group is replaced as a whole, i.e. for all clusters or clients.

    Raises:
        Refused: a PRIVATE group is too large for memory. Its values lie in a file, which cannot be replaced as a whole.
    """
    for name, params in values.items():
        if state.store is not None and name in state.store.values:
            raise Refused(
                f"`ServerStep.update` returns the PRIVATE group {name!r}, which is too large for memory; "
                "return only groups that are not PRIVATE"
            )
        for key, value in params.items():
            state.values[name][key] = value


@dataclass(frozen=True)
class Moments:
    """The moments that the server optimiser keeps for one tensor.

    They are computed from the pseudo-gradient: the old value of the tensor minus the mean over the clients. The moments
    of empty clusters do not change.
    """

    server: dict[str, Tensor]
    """All moments of the server, by name."""
    key: str
    held: Tensor | None
    """Mask [C] of the empty clusters, which keep their values."""

    def momentum(self, optimiser: Optimiser, gradient: Tensor) -> Tensor:
        """Update the momentum v ← β1·v + g, where g is the pseudo-gradient and β1 is `betas[0]`; return the new v."""
        before = self.server.get(f"{self.key}/first", torch.zeros_like(gradient))
        self.server[f"{self.key}/first"] = unless(self.held, optimiser.betas[0] * before + gradient, before)
        return self.server[f"{self.key}/first"]

    def adam(self, optimiser: Optimiser, gradient: Tensor, clustered: bool) -> Tensor:
        """Update the moments and return Adam's change m̂/(√v̂ + ε), before it is multiplied by the learning rate.

        m̂ and v̂ are the bias-corrected first and second moments, and ε is `optimiser.epsilon`. Each cluster counts its
        own updates, because empty clusters are not updated.
        """
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
    """Return `new`, but with the `old` values of the clusters that are True in the mask `held` [C]."""
    return new if held is None else torch.where(along(held, old), old, new)


class HasValues(Protocol):
    """The type of all objects that have an attribute `values` with the trained values of clients."""

    @property
    def values(self) -> View: ...


def write_back(state: State, method: Method, trained: HasValues, pools: Tensor) -> None:
    """Write the trained PRIVATE values [m, ...] into the state, for the clients with the indices `pools` [m].

    For a method that trains pools of clients on their joint samples, `pools` has the indices of the pools instead. The
    values of all clients that are not in `pools` stay unchanged.
    """
    for name, params in trained.values.items():
        if method.groups[name].scope is Scope.PRIVATE:
            for key, value in params.items():
                stored = state.values[name][key]
                stored.index_copy_(0, pools.to(stored.device), value.to(stored.device))
    if state.store is not None:
        state.store.mark(pools)

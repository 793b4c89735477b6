"""The server: weighted means by scope, chunk by chunk, then one step of the server's optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from floral.engine.local import Trained
from floral.engine.state import State
from floral.spec import Method, Params, Scope, View

MASSLESS = 1e-6
"""A cluster whose share Σ_k p(k) π_kc of a round is below this has no mass."""


@dataclass
class Mean:
    """Weighted means of a round: SHARED with p(k) ∝ n_k, CLUSTERED with p(k|c) ∝ n_k·π_kc, over the cohort.

    The weights p(k|c) are kept as logarithms and rescaled by their running maximum, so a hard route (π ≈ 4e-44) neither
    underflows nor makes denormal numbers: p(k|c) = softmax over k of (log n_k + log π_kc).
    """

    method: Method
    clusters: int
    sums: View = field(default_factory=dict)
    top: Tensor | None = None
    """[C] the largest log weight so far."""
    mass: Tensor | None = None
    """[C] Σ_k exp(log weight - top)."""

    def add(self, trained: Trained, share: Tensor, members: Tensor | None) -> None:
        """Add a chunk: `share` [m] is p(k), `members` [m] the fixed clusters of its clients, if the method has them."""
        clustered = any(self.method.groups[name].scope is Scope.CLUSTERED for name in trained.values)
        weight = rescale = None
        if clustered:
            if members is not None:
                log_route = torch.full((len(share), self.clusters), -math.inf, dtype=torch.float64, device=share.device)
                log_route[torch.arange(len(share)), members] = 0.0
            else:
                assert trained.log_route is not None, "a CLUSTERED group needs a route or a member"
                log_route = trained.log_route.double()
            weight, rescale = self._weigh(share.double().log()[:, None] + log_route)
        for name, params in trained.sums.items():
            self._accumulate(name, params)
        for name, params in trained.values.items():
            match self.method.groups[name].scope:
                case Scope.SHARED:
                    self._accumulate(name, {key: torch.tensordot(share.to(t.dtype), t, 1) for key, t in params.items()})
                case Scope.CLUSTERED:
                    assert weight is not None and rescale is not None
                    self._accumulate(name, {key: cluster_sum(weight, t, members) for key, t in params.items()}, rescale)

    def _weigh(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """exp(log weight - top) [m, C] with the new top, and the factor [C] by which older sums shrink."""
        top = log_weight.amax(0)
        if self.top is not None:
            top = torch.maximum(top, self.top)
        safe = torch.where(top == -math.inf, 0.0, top)
        rescale = torch.zeros_like(safe) if self.top is None else torch.exp(self.top - safe)
        weight = torch.exp(log_weight - safe)
        self.mass = weight.sum(0) + (0 if self.mass is None else self.mass * rescale)
        self.top = top
        return weight, rescale

    def _accumulate(self, name: str, params: Params, rescale: Tensor | None = None) -> None:
        sums = self.sums.setdefault(name, {})
        for key, value in params.items():
            if key not in sums:
                sums[key] = value
            elif rescale is None:
                sums[key] = sums[key] + value
            else:
                sums[key] = sums[key] * along(rescale, value) + value

    def result(self, massless: Literal["keep", "average"]) -> tuple[View, Tensor | None]:
        """The mean of every SHARED and CLUSTERED group, and which clusters [C] keep their value for want of mass.

        With "average" only a cluster without any weight keeps it; else the relative weights decide, however small.
        """
        if self.mass is None or self.top is None:
            return self.sums, None
        mass = self.mass
        share = torch.where(mass > 0, self.top.exp() * mass, 0.0)
        kept = mass == 0 if massless == "average" else share < MASSLESS
        means = {
            name: params
            if self.method.groups[name].scope is Scope.SHARED
            else {key: value / along(torch.where(mass > 0, mass, 1.0), value) for key, value in params.items()}
            for name, params in self.sums.items()
        }
        return means, kept


def cluster_sum(weight: Tensor, tensor: Tensor, members: Tensor | None) -> Tensor:
    """Σ_k weight[k, c]·tensor[k, c] over a chunk: from [m, C, ...], or [m, ...] where a client has one cluster."""
    weight = weight.to(tensor.dtype)
    if members is None:
        return torch.einsum("kc,kc...->c...", weight, tensor)
    return torch.tensordot(weight.mT, tensor, 1)


def along(vector: Tensor, like: Tensor) -> Tensor:
    """A vector [C] shaped to multiply a tensor [C, ...]."""
    vector = vector if vector.dtype is torch.bool else vector.to(like.dtype)
    return vector.reshape(-1, *(1,) * (like.dim() - 1))


@dataclass(frozen=True)
class ServerOptimiser:
    """The server's step on g = old - mean (arXiv 2003.00295): SGD, whose lr 1 is plain averaging, or Adam.

    Adam has β = (0.9, 0.999) and ε = 1e-8, PyTorch's defaults, as the published CIFAR-100 configuration.
    """

    kind: Literal["sgd", "adam"]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def step(self, state: State, means: View, kept: Tensor | None, method: Method) -> None:
        """Replace the values of the groups in `means`, but for the clusters in `kept`; statistics take the mean."""
        for name, params in means.items():
            group = method.groups[name]
            lr = self.lr if group.server_lr is None else group.server_lr
            held = kept if group.scope is Scope.CLUSTERED and kept is not None and bool(kept.any()) else None
            for key, mean in params.items():
                old = state.values[name][key]
                if group.statistic:
                    new = mean
                elif self.kind == "adam":
                    new = self._adam(state.server, f"{name}/{key}", old, mean, lr, held, group.scope is Scope.CLUSTERED)
                else:
                    new = mean if lr == 1.0 else old + lr * (mean - old)
                state.values[name][key] = unless(held, new, old)

    def _adam(
        self,
        moments: dict[str, Tensor],
        key: str,
        old: Tensor,
        mean: Tensor,
        lr: float,
        held: Tensor | None,
        clustered: bool,
    ) -> Tensor:
        """Moments and steps are a cluster's own: it takes none in a round in which it keeps its value."""
        gradient = old - mean
        steps = moments.get(
            f"{key}/steps", torch.zeros(len(old) if clustered else 1, dtype=torch.float64, device=old.device)
        )
        steps = moments[f"{key}/steps"] = steps + (1 if held is None else (~held).to(steps.dtype))
        unbiased = []
        for order, beta, power in zip(("first", "second"), self.betas, (gradient, gradient**2), strict=True):
            before = moments.get(f"{key}/{order}", torch.zeros_like(old))
            moments[f"{key}/{order}"] = unless(held, beta * before + (1 - beta) * power, before)
            unbiased.append(moments[f"{key}/{order}"] / along(1 - beta**steps, old))
        return old - lr * unbiased[0] / (unbiased[1].sqrt() + self.epsilon)


def unless(held: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new`, but `old` for the clusters [C] that are held."""
    return new if held is None else torch.where(along(held, old), old, new)


def write_back(state: State, method: Method, trained: Trained, learners: Tensor) -> None:
    """PRIVATE groups return to the learners that took part; all others keep theirs."""
    for name, params in trained.values.items():
        if method.groups[name].scope is Scope.PRIVATE:
            for key, value in params.items():
                state.values[name][key].index_copy_(0, learners, value)

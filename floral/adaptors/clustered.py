"""C adaptors of a model, one per cluster, and how the server aggregates their factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from floral.adaptors.aggregation import (
    averaging_error,
    download_floats,
    flatten,
    require_matrix_products,
    restart,
    svd_factors,
    unflatten,
)
from floral.adaptors.attach import Adaptors, factor, merge_groups
from floral.core.spec import ClientVectors, Group, Params, Phase, Problem, Refused, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import distinct_starts, repeated_start


@dataclass(frozen=True, kw_only=True)
class ClusteredAdaptors:
    """CLUSTERED adaptors with distinct starts, aggregated by the server with weights p(k|c).

    `aggregation` is one of:

    - "average": A_c and B_c are averaged separately.
    - "ffa": A_c stays at its start, B_c is averaged. This average is exact.
    - "rolora": odd rounds train and average B_c, even rounds A_c. This average is exact.
    - "fedex": the factors are averaged, and the error of this average is added to Δ_c.
    - "flexlora": the factors are the best ones for Σ_k p(k|c) B_kc A_kc, from an SVD.
    - "stacking": Σ_k p(k|c) B_kc A_kc is added to Δ_c, and new adaptors start.

    Δ_c is a change of the base in full rank. Each cluster has one, and a client applies it as it applies the adaptor.
    It is neither trained nor averaged.

    An empty cluster does not change. "fedex", "flexlora" and "stacking" use the products without the server's learning
    rate of the adaptors. With a fixed cluster `member` [K] per client, a client holds, trains and sends only that
    cluster's adaptor.
    """

    problem: Problem
    adaptors: Adaptors
    aggregation: str
    member: Tensor | None = None
    sent_clusters: int | None = None
    """Number of adaptors that a client uploads under "average", "ffa" and "rolora"; None: all that it holds."""
    server_lr: float | None = None
    """The server's learning rate of the adaptors; None: that of the task and the fidelity switch."""

    def __post_init__(self) -> None:
        if self.aggregation == "flexlora":
            require_matrix_products(self.adaptors)

    # ---------------------------------------------------------------------------------------------- parameters

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups that hold the adaptors' parameters."""
        return ("A", "B") if self.aggregation in ("ffa", "rolora") else ("adaptors",)

    @property
    def has_residual(self) -> bool:
        """Whether each cluster has a Δ_c, the group "residual"."""
        return self.aggregation in ("fedex", "stacking")

    @property
    def groups(self) -> dict[str, Group]:
        """The groups of the adaptors, of Δ_c (which starts at zero) and of the adaptors' own running statistics."""
        problem = self.problem
        by_switch = problem.lr if problem.switches["adaptor_server_lr"] == "client" else None
        rate = by_switch if self.server_lr is None else self.server_lr

        def start(name: str) -> Params:
            adaptors = distinct_starts(self.adaptors.init, Stream(problem.seed, "adaptors"), problem.clusters)
            return adaptors if name == "adaptors" else factor(adaptors, "A" if name == "A" else "B")

        def group(name: str) -> Group:
            fixed = name == "A" and self.aggregation == "ffa"
            return Group(scope=Scope.CLUSTERED, init=partial(start, name), lr=problem.lr, server_lr=rate, fixed=fixed)

        groups = {name: group(name) for name in self.group_names}
        if self.has_residual:
            groups["residual"] = Group(scope=Scope.CLUSTERED, init=lambda: self._zero_residual(start("adaptors")))
        if statistics := self.adaptors.statistics():
            groups["adaptor_statistics"] = Group(
                scope=Scope.CLUSTERED, init=lambda: repeated_start(statistics, problem.clusters), statistic=True
            )
        return groups

    def _zero_residual(self, adaptors: Params) -> Params:
        """Δ_c = 0 [C, ...] with the shapes of the products."""
        zero = self.adaptors.products(adaptors, torch.zeros(self.problem.clusters))
        changed = {name: t for name, t in zero.items() if self.aggregation == "stacking" or name.endswith(".weight")}
        return {name: t.new_zeros(self.problem.clusters, *t.shape) for name, t in changed.items()}

    def mixture(self, view: View) -> Params:
        """The adaptors that a client holds, with a cluster axis; its length is 1 if the client holds one adaptor."""
        return self._with_axis(merge_groups(view, self.group_names))

    def running(self, view: View) -> Params:
        """The adaptors' own running statistics, with a cluster axis as in `mixture`."""
        return self._with_axis(view.get("adaptor_statistics", {}))

    def changed(self, view: View, statistics: Params) -> View:
        """All groups of running statistics after a pass in which the model's became `statistics`."""
        if not statistics:
            return {}
        groups: View = {"statistics": statistics}
        if running := self.running(view):
            moved = self.adaptors.moved(running, view["statistics"], statistics)
            groups["adaptor_statistics"] = moved if self.member is None else {name: t[0] for name, t in moved.items()}
        return groups

    def base(self, view: View, route: Tensor) -> Params:
        """The base plus Σ_c route_c Δ_c."""
        if not self.has_residual:
            return view["base"]
        added = self._with_axis(view["residual"])
        return {**view["base"], **{n: view["base"][n] + torch.tensordot(route, t, 1) for n, t in added.items()}}

    def _with_axis(self, params: Params) -> Params:
        """Parameters with a cluster axis."""
        return params if self.member is None else {name: value[None] for name, value in params.items()}

    # ------------------------------------------------------------------------------------------------ training

    @property
    def precondition(self) -> Mapping[str, Callable[[Params, Params], Params]]:
        """The adaptors' preconditioner for each trained group; a group may hold only one of the factors."""

        def change(gradients: Params, values: Params) -> Params:
            full = self._with_axis({name: torch.zeros_like(t) for name, t in values.items()} | gradients)
            changed = self.adaptors.precondition(full, self._with_axis(values))
            return {name: changed[name] if self.member is None else changed[name][0] for name in gradients}

        return {name: change for name in self.group_names if not self.groups[name].fixed}

    @property
    def preconditioner_inputs(self) -> dict[str, tuple[str, ...]]:
        """The group of the other factor, which the preconditioner reads."""
        return {} if len(self.group_names) == 1 else {"A": ("B",), "B": ("A",)}

    def phases(self, *groups: str) -> tuple[Phase, ...] | None:
        """The phases that train the adaptors, or one factor at a time, together with `groups`."""
        match self.aggregation:
            case "average":
                return (self._phase("adaptors", *groups),) if self.sent_clusters else None
            case "ffa":
                return (self._phase("B", *groups),)
            case "rolora":
                return (
                    replace(self._phase("B", *groups), when=lambda round, rounds: round % 2 == 1),
                    replace(self._phase("A", *groups), when=lambda round, rounds: round % 2 == 0),
                )
        return (Phase(train=(*groups, "adaptors"), floats_sent=self._floats_sent()),)

    def _phase(self, name: Literal["adaptors", "A", "B"], *groups: str) -> Phase:
        """The phase that trains one group of the adaptors; a client uploads `sent` clusters of it."""
        if not self.sent_clusters:
            return Phase(train=(*groups, name))
        adaptor = self.adaptors.init(Stream(0, "size"))
        size = sum(t.numel() for t in (adaptor if name == "adaptors" else factor(adaptor, name)).values())
        return Phase(
            train=(*groups, name), floats_sent={name: (self.problem.clusters * size, self.sent_clusters * size)}
        )

    def _floats_sent(self) -> dict[str, tuple[int, int]]:
        """Floats (down, up) for the change of Δ_c and, under "stacking", for the new adaptors (only A is sent down)."""
        held = self.problem.clusters if self.member is None else 1
        if not self.has_residual:
            return {}
        biases = self.aggregation == "stacking"
        floats_sent = {"residual": (held * download_floats(self.adaptors, self.problem.cohort, biases=biases), 0)}
        if self.aggregation == "stacking":
            start = factor(self.adaptors.init(Stream(0, "size")), "A")
            floats_sent["adaptors"] = (held * sum(t.numel() for t in start.values()), held * self.adaptors.size)
        return floats_sent

    # -------------------------------------------------------------------------------------------------- server

    def server_step(self, log_route: Callable[[View], Tensor] | None) -> ServerStep:
        """The server's step: exact products where `aggregation` needs them, otherwise FedAvg's means.

        For exact products, each client sends its adaptors and then log π_k [C] from `log_route`, which is None where
        the clusters of the clients are fixed.
        """
        if self.aggregation not in ("fedex", "flexlora", "stacking"):
            return ServerStep()

        def client_vector(view: View) -> Tensor:
            factors = flatten(view["adaptors"])
            return factors if log_route is None else torch.cat([factors, log_route(view)])

        return ServerStep(client_vector=client_vector, update=self.exact_products)

    def exact_products(self, served: ServerView) -> View:
        """Put the exact products of each non-empty cluster into its adaptor or its Δ_c."""
        assert served.client_vectors is not None
        before, means, after = (view["adaptors"] for view in (served.before, served.means, served.after))
        clients, weights = self._received(served.client_vectors, before)
        adaptors = {name: t.clone() for name, t in after.items()}
        residuals = {name: t.clone() for name, t in served.before.get("residual", {}).items()}
        for c in range(self.problem.clusters):
            if all(torch.equal(after[name][c], before[name][c]) for name in after):
                continue
            factors = {name: t[:, c if self.member is None else 0] for name, t in clients.items()}
            new, added = self._exact(factors, weights[:, c], {name: t[c] for name, t in means.items()}, c, served.round)
            for name, value in new.items():
                adaptors[name][c] = value
            for name, value in added.items():
                residuals[name][c] += value
        return {"adaptors": adaptors, **({"residual": residuals} if residuals else {})}

    def _received(self, sent: ClientVectors, like: Params) -> tuple[Params, Tensor]:
        """The clients' adaptors [M, C or 1, ...] and p(k|c) [M, C]."""
        share, vectors = sent.share.to(sent.vectors.dtype), sent.vectors
        if self.member is not None:
            clusters = torch.arange(self.problem.clusters, device=vectors.device)
            weights = share[:, None] * (self.member[sent.clients][:, None] == clusters)
            return unflatten(vectors, {name: t[:1] for name, t in like.items()}), weights / weights.sum(0).clamp(
                min=1e-30
            )
        factors, log_route = vectors.split([vectors.shape[1] - self.problem.clusters, self.problem.clusters], dim=1)
        return unflatten(factors, like), torch.softmax(share.log()[:, None] + log_route, 0)

    def _exact(self, clients: Params, weight: Tensor, mean: Params, cluster: int, round: int) -> tuple[Params, Params]:
        """The new factors of a cluster, where these are not the means, and the change of its Δ_c."""
        match self.aggregation:
            case "fedex":
                return {}, averaging_error(self.adaptors, clients, weight, mean)
            case "flexlora":
                return svd_factors(self.adaptors, clients, weight, mean), {}
            case "stacking":
                drawn = self.adaptors.init(Stream(self.problem.seed, "adaptors").at(round, cluster))
                return restart(drawn), self.adaptors.products(clients, weight)
        raise Refused(f"aggregation: {self.aggregation} has no exact products; use fedex, flexlora or stacking")

"""C adaptors of a model, one per cluster, and how the server aggregates their factors A and B."""

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
    """One adaptor per cluster, each with its own random initial values, and how the server aggregates them.

    In the server's mean of cluster c, client k has the weight p(k|c). `aggregation` is one of:

    - "average": the factors A_c and B_c are averaged separately.
    - "ffa": A_c keeps its initial value, and B_c is averaged. So B_c A_c is exactly the mean of the clients' products.
    - "rolora": odd rounds train and average only B_c, even rounds only A_c. So B_c A_c is again exactly this mean.
    - "fedex": the factors are averaged, and the error of the averaged product is added to Δ_c.
    - "flexlora": an SVD gives the factors whose product is closest to the mean product Σ_k p(k|c) B_kc A_kc.
    - "stacking": the mean product Σ_k p(k|c) B_kc A_kc is added to Δ_c, and new adaptors start.

    Δ_c is a full-rank change of the base for cluster c. Clients use it with the same weights as the adaptor of cluster
    c. Δ_c is neither trained nor averaged.

    An empty cluster does not change. "fedex", "flexlora" and "stacking" ignore the server's learning rate of the
    adaptors. If `member` [K] gives each client a fixed cluster, a client holds, trains and sends only that cluster's
    adaptor.
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
        """The names of the parameter groups that hold the adaptors."""
        return ("A", "B") if self.aggregation in ("ffa", "rolora") else ("adaptors",)

    @property
    def has_residual(self) -> bool:
        """Whether each cluster has a full-rank change Δ_c of the base, in the parameter group "residual"."""
        return self.aggregation in ("fedex", "stacking")

    @property
    def groups(self) -> dict[str, Group]:
        """The parameter groups of this class, by name.

        They hold the adaptors and, if there are any, the adaptors' running statistics. With "fedex" and "stacking", a
        further group holds a full-rank change Δ_c of the base for each cluster c, which starts at zero.
        """
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
        """Return the initial value 0 of the full-rank changes Δ_c of the base for C clusters.

        These are zeros [C, ...] with the shapes of the products B A.
        """
        zero = self.adaptors.products(adaptors, torch.zeros(self.problem.clusters))
        changed = {name: t for name, t in zero.items() if self.aggregation == "stacking" or name.endswith(".weight")}
        return {name: t.new_zeros(self.problem.clusters, *t.shape) for name, t in changed.items()}

    def mixture(self, view: View) -> Params:
        """Return the adaptors that a client holds, with a leading cluster axis.

        The axis has length 1 if the client holds the adaptor of one cluster only.
        """
        return self._with_axis(merge_groups(view, self.group_names))

    def running(self, view: View) -> Params:
        """Return the running statistics of the adaptors that a client holds.

        They have a leading cluster axis, as in `mixture`.
        """
        return self._with_axis(view.get("adaptor_statistics", {}))

    def changed(self, view: View, statistics: Params) -> View:
        """Return the running statistics of the model and those of the adaptors, after a training pass.

        `statistics` holds the model's running statistics after the pass, and `view` all statistics before the pass.
        """
        if not statistics:
            return {}
        groups: View = {"statistics": statistics}
        if running := self.running(view):
            moved = self.adaptors.moved(running, view["statistics"], statistics)
            groups["adaptor_statistics"] = moved if self.member is None else {name: t[0] for name, t in moved.items()}
        return groups

    def base(self, view: View, route: Tensor) -> Params:
        """Return the base model plus Σ_c route_c Δ_c, where Δ_c is a full-rank change of the base for cluster c.

        `route` holds a client's cluster weights.
        """
        if not self.has_residual:
            return view["base"]
        added = self._with_axis(view["residual"])
        return self.adaptors.added(view["base"], {n: torch.tensordot(route, t, 1) for n, t in added.items()})

    def _with_axis(self, params: Params) -> Params:
        """Return the parameters of a client with a leading cluster axis.

        The axis has length 1 if the client holds the adaptor of one cluster only.
        """
        return params if self.member is None else {name: value[None] for name, value in params.items()}

    # ------------------------------------------------------------------------------------------------ training

    @property
    def precondition(self) -> Mapping[str, Callable[[Params, Params], Params]]:
        """For each trained parameter group of the adaptors, the function that preconditions its gradients."""

        def change(gradients: Params, values: Params) -> Params:
            full = self._with_axis({name: torch.zeros_like(t) for name, t in values.items()} | gradients)
            changed = self.adaptors.precondition(full, self._with_axis(values))
            return {name: changed[name] if self.member is None else changed[name][0] for name in gradients}

        return {name: change for name in self.group_names if not self.groups[name].fixed}

    @property
    def preconditioner_inputs(self) -> dict[str, tuple[str, ...]]:
        """For each parameter group, the other group that its preconditioner needs: B for A, and A for B.

        The result is empty if one parameter group holds both factors.
        """
        return {} if len(self.group_names) == 1 else {"A": ("B",), "B": ("A",)}

    def phases(self, *groups: str) -> tuple[Phase, ...] | None:
        """Return which parameter groups a client trains in which rounds.

        With "rolora", for example, odd rounds train the factors B and even rounds the factors A. The parameter groups
        named in `groups` are trained in every round. The result is None if every round trains all parameter groups of
        the method.
        """
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
        """Return a `Phase` that trains the adaptors' parameter group `name` and the parameter groups named in `groups`.

        If `sent_clusters` is set, a client downloads the adaptors of all clusters and uploads those of `sent_clusters`
        clusters.
        """
        if not self.sent_clusters:
            return Phase(train=(*groups, name))
        adaptor = self.adaptors.init(Stream(0, "size"))
        size = sum(t.numel() for t in (adaptor if name == "adaptors" else factor(adaptor, name)).values())
        return Phase(
            train=(*groups, name), floats_sent={name: (self.problem.clusters * size, self.sent_clusters * size)}
        )

    def _floats_sent(self) -> dict[str, tuple[int, int]]:
        """Return, for each parameter group, how many floats a client receives and sends in a round.

        The result is empty unless each cluster has a full-rank change Δ_c of the base. The parameter group "residual"
        counts the update of Δ_c that the server sends. With "stacking", the parameter group "adaptors" is counted too.
        A client then receives only the factors A of the new adaptors, because their factors B and biases are zero. It
        sends complete adaptors.
        """
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
        """Return what the server does in a round, in addition to FedAvg's averages.

        If `aggregation` needs it, the server computes the exact mean of the clients' products B A. Otherwise, it does
        nothing more.

        For the exact mean, each client sends a vector. It holds the client's adaptors, and after them log π_k [C], the
        logarithms of the client's cluster weights. `log_route` returns these logarithms. If each client has a fixed
        cluster, `log_route` is None, and the vector holds the adaptors only.
        """
        if self.aggregation not in ("fedex", "flexlora", "stacking"):
            return ServerStep()

        def client_vector(view: View) -> Tensor:
            factors = flatten(view["adaptors"])
            return factors if log_route is None else torch.cat([factors, log_route(view)])

        return ServerStep(client_vector=client_vector, update=self.exact_products)

    def exact_products(self, served: ServerView) -> View:
        """Return new adaptors, and new full-rank changes Δ_c of the base, from the exact mean of the clients' products
        B A.

        Clusters without clients keep their values.
        """
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
        """Return the adaptors that the M clients of the round sent, and the clients' weights p(k|c) [M, C].

        The adaptors have the axes [M, C, ...], or [M, 1, ...] if each client has a fixed cluster.
        """
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
        """Return the new factors of a cluster, and what is added to its full-rank change Δ_c of the base.

        The first result is empty if the cluster keeps the averaged factors. The second result is empty if `aggregation`
        has no Δ_c.
        """
        match self.aggregation:
            case "fedex":
                return {}, averaging_error(self.adaptors, clients, weight, mean)
            case "flexlora":
                return svd_factors(self.adaptors, clients, weight, mean), {}
            case "stacking":
                drawn = self.adaptors.init(Stream(self.problem.seed, "adaptors").at(round, cluster))
                return restart(drawn), self.adaptors.products(clients, weight)
        raise Refused(
            f"`aggregation: {self.aggregation}` averages the factors of adaptors, but the server needs the mean of "
            "their products B·A; set it to fedex, flexlora or stacking"
        )

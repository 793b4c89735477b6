"""C adaptors of a model, one per cluster, and how the server averages their factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from floral.adaptors.aggregation import as_matrices, decomposed, down, flat, residual, restarted, unflat
from floral.adaptors.attach import Adaptors, factor, gathered
from floral.core.spec import ClientVectors, Group, Params, Phase, Problem, Refused, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import distinct, same


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """CLUSTERED adaptors with distinct starts, whose factors are averaged with p(k|c) as `aggregation` says.

    "average": A_c and B_c each by itself. "ffa": A_c stays at its start, B_c is averaged. "rolora": odd rounds train
    and average B_c, even ones A_c. The others take Σ_k p(k|c) B_kc A_kc, as these two do without more: "fedex" averages
    the factors and adds what this misses to Δ_c, "flexlora" takes the best factors from an SVD, and "stacking" adds
    everything to Δ_c and begins with new adaptors. Δ_c is a change of the base in full
    rank that the cluster keeps, and every client adds as it adds the adaptor; it is neither trained nor averaged.

    A cluster without mass keeps what it has. The last three take products as they are, whatever the server's learning
    rate of the adaptors is. A fixed cluster `member` [K] of each client makes it hold, train and send that one alone.
    """

    problem: Problem
    adaptors: Adaptors
    aggregation: str
    member: Tensor | None = None
    sent: int | None = None
    """How many of the adaptors a client sends up where these are averaged; None: all it holds."""
    server_lr: float | None = None
    """The server's step on the adaptors; None: the task's and the fidelity's."""

    def __post_init__(self) -> None:
        if self.aggregation == "flexlora":
            as_matrices(self.adaptors)

    # ------------------------------------------------------------------------------------------ what clients hold

    @property
    def names(self) -> tuple[str, ...]:
        """The groups that the adaptors' parameters lie in."""
        return ("A", "B") if self.aggregation in ("ffa", "rolora") else ("adaptors",)

    @property
    def keeps(self) -> bool:
        """Whether the clusters have a Δ_c, the group "residual"."""
        return self.aggregation in ("fedex", "stacking")

    @property
    def groups(self) -> dict[str, Group]:
        """The adaptors, under the run's server rate, and Δ_c, which starts at zero."""
        problem = self.problem
        by_switch = problem.lr if problem.switches["adaptor_server_lr"] == "client" else None
        rate = by_switch if self.server_lr is None else self.server_lr

        def start(name: str) -> Params:
            made = distinct(self.adaptors.init, Stream(problem.seed, "adaptors"), problem.clusters)
            return made if name == "adaptors" else factor(made, "A" if name == "A" else "B")

        def one(name: str) -> Group:
            fixed = name == "A" and self.aggregation == "ffa"
            return Group(scope=Scope.CLUSTERED, init=partial(start, name), lr=problem.lr, server_lr=rate, fixed=fixed)

        groups = {name: one(name) for name in self.names}
        if self.keeps:
            groups["residual"] = Group(scope=Scope.CLUSTERED, init=lambda: self._changes(start("adaptors")))
        if own := self.adaptors.statistics():
            groups["adaptor_statistics"] = Group(
                scope=Scope.CLUSTERED, init=lambda: same(own, problem.clusters), statistic=True
            )
        return groups

    def _changes(self, adaptors: Params) -> Params:
        """Zeros [C, ...] of the shapes of the products: what Δ_c changes."""
        nothing = self.adaptors.products(adaptors, torch.zeros(self.problem.clusters))
        left = {name: t for name, t in nothing.items() if self.aggregation == "stacking" or name.endswith(".weight")}
        return {name: t.new_zeros(self.problem.clusters, *t.shape) for name, t in left.items()}

    def mixture(self, view: View) -> Params:
        """The adaptors that a client holds, with an axis of clusters, of length 1 where it holds its own alone."""
        return self._with_axis(gathered(view, self.names))

    def running(self, view: View) -> Params:
        """The adaptors' own statistics, with an axis of clusters as `mixture` has."""
        return self._with_axis(view.get("adaptor_statistics", {}))

    def changed(self, view: View, statistics: Params) -> View:
        """The groups of statistics after a pass that gave these of the model."""
        if not statistics:
            return {}
        found: View = {"statistics": statistics}
        if own := self.running(view):
            moved = self.adaptors.moved(own, view["statistics"], statistics)
            found["adaptor_statistics"] = moved if self.member is None else {name: t[0] for name, t in moved.items()}
        return found

    def base(self, view: View, route: Tensor) -> Params:
        """The base with Σ_c route_c Δ_c."""
        if not self.keeps:
            return view["base"]
        added = self._with_axis(view["residual"])
        return {**view["base"], **{n: view["base"][n] + torch.tensordot(route, t, 1) for n, t in added.items()}}

    def _with_axis(self, params: Params) -> Params:
        return params if self.member is None else {name: value[None] for name, value in params.items()}

    # ------------------------------------------------------------------------------------------ how they train

    @property
    def precondition(self) -> Mapping[str, Callable[[Params, Params], Params]]:
        """The adaptors' own preconditioner, of the factor alone that a group has."""

        def change(gradients: Params, values: Params) -> Params:
            full = self._with_axis({name: torch.zeros_like(t) for name, t in values.items()} | gradients)
            changed = self.adaptors.precondition(full, self._with_axis(values))
            return {name: changed[name] if self.member is None else changed[name][0] for name in gradients}

        return {name: change for name in self.names if not self.groups[name].fixed}

    @property
    def preconditioner_inputs(self) -> dict[str, tuple[str, ...]]:
        """The other factor, which a preconditioner reads."""
        return {} if len(self.names) == 1 else {"A": ("B",), "B": ("A",)}

    def phases(self, *others: str) -> tuple[Phase, ...] | None:
        """One joint training of the adaptors and `others`, or of one factor at a time."""
        match self.aggregation:
            case "average":
                return (self._phase("adaptors", *others),) if self.sent else None
            case "ffa":
                return (self._phase("B", *others),)
            case "rolora":
                return (
                    replace(self._phase("B", *others), when=lambda round, rounds: round % 2 == 1),
                    replace(self._phase("A", *others), when=lambda round, rounds: round % 2 == 0),
                )
        return (Phase(train=(*others, "adaptors"), floats_sent=self._floats_sent()),)

    def _phase(self, name: Literal["adaptors", "A", "B"], *others: str) -> Phase:
        """The training of one group of the adaptors, of which `sent` clusters travel up."""
        if not self.sent:
            return Phase(train=(*others, name))
        one = self.adaptors.init(Stream(0, "size"))
        size = sum(t.numel() for t in (one if name == "adaptors" else factor(one, name)).values())
        return Phase(train=(*others, name), floats_sent={name: (self.problem.clusters * size, self.sent * size)})

    def _floats_sent(self) -> dict[str, tuple[int, int]]:
        """Floats of Δ_c's change, and of new adaptors, which are zero but for A."""
        held = self.problem.clusters if self.member is None else 1
        if not self.keeps:
            return {}
        biases = self.aggregation == "stacking"
        floats_sent = {"residual": (held * down(self.adaptors, self.problem.cohort, biases=biases), 0)}
        if self.aggregation == "stacking":
            start = factor(self.adaptors.init(Stream(0, "size")), "A")
            floats_sent["adaptors"] = (held * sum(t.numel() for t in start.values()), held * self.adaptors.size)
        return floats_sent

    # ------------------------------------------------------------------------------------------ what the server does

    def server_step(self, log_route: Callable[[View], Tensor] | None) -> ServerStep:
        """Exact products, where `aggregation` needs the factors of every client; FedAvg's means otherwise.

        Clients send their adaptors, followed by log π_k [C] from `log_route`. None: their clusters are fixed.
        """
        if self.aggregation not in ("fedex", "flexlora", "stacking"):
            return ServerStep()

        def client_vector(view: View) -> Tensor:
            factors = flat(view["adaptors"])
            return factors if log_route is None else torch.cat([factors, log_route(view)])

        return ServerStep(client_vector=client_vector, update=self.exact_products)

    def exact_products(self, served: ServerView) -> View:
        """The exact products of each cluster that has mass, where `aggregation` puts them."""
        assert served.client_vectors is not None
        before, means, after = (view["adaptors"] for view in (served.before, served.means, served.after))
        clients, weights = self._received(served.client_vectors, before)
        adaptors = {name: t.clone() for name, t in after.items()}
        kept = {name: t.clone() for name, t in served.before.get("residual", {}).items()}
        for c in range(self.problem.clusters):
            if all(torch.equal(after[name][c], before[name][c]) for name in after):
                continue
            own = {name: t[:, c if self.member is None else 0] for name, t in clients.items()}
            new, added = self._exact(own, weights[:, c], {name: t[c] for name, t in means.items()}, c, served.round)
            for name, value in new.items():
                adaptors[name][c] = value
            for name, value in added.items():
                kept[name][c] += value
        return {"adaptors": adaptors, **({"residual": kept} if kept else {})}

    def _received(self, sent: ClientVectors, like: Params) -> tuple[Params, Tensor]:
        """The clients' adaptors [M, C or 1, ...] and p(k|c) [M, C]."""
        share, vectors = sent.share.to(sent.vectors.dtype), sent.vectors
        if self.member is not None:
            clusters = torch.arange(self.problem.clusters, device=vectors.device)
            own = share[:, None] * (self.member[sent.clients][:, None] == clusters)
            return unflat(vectors, {name: t[:1] for name, t in like.items()}), own / own.sum(0).clamp(min=1e-30)
        factors, log_route = vectors.split([vectors.shape[1] - self.problem.clusters, self.problem.clusters], dim=1)
        return unflat(factors, like), torch.softmax(share.log()[:, None] + log_route, 0)

    def _exact(self, clients: Params, weight: Tensor, mean: Params, cluster: int, round: int) -> tuple[Params, Params]:
        """New factors of a cluster, where they are not the means, and what is added to its Δ_c."""
        match self.aggregation:
            case "fedex":
                return {}, residual(self.adaptors, clients, weight, mean)
            case "flexlora":
                return decomposed(self.adaptors, clients, weight, mean), {}
            case "stacking":
                drawn = self.adaptors.init(Stream(self.problem.seed, "adaptors").at(round, cluster))
                return restarted(drawn), self.adaptors.products(clients, weight)
        raise Refused(f"no server takes products for aggregation {self.aggregation!r}")

"""Give each client its own rank of a shared low-rank adaptor, for methods in which ranks differ between clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from floral.adaptors.aggregation import flatten, keep_components
from floral.adaptors.attach import Adaptors
from floral.core.spec import Group, Method, Noise, Params, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream


@dataclass(frozen=True)
class ClientRanks:
    """The ranks of the clients. Client k trains and sends only the first r_k components of the adaptor."""

    at_start: Tensor
    """The rank r_k of each client [K] before round 1."""
    floats_sent: tuple[int, int]
    """Numbers that a client downloads and uploads, with the ranks before round 1, as means over the clients."""

    @staticmethod
    def truncated(view: View) -> Params:
        """Return the client's adaptor. All components from its rank on are zero."""
        return keep_components(view["adaptor"], 0, view["rank"]["components"])

    def phase(self, adaptors: Adaptors) -> dict[str, Any]:
        """Return the keyword arguments of `Phase` for training with the client's truncated adaptor."""
        predict_full = adaptors.predictor(("adaptor",))

        def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
            return predict_full({**view, "adaptor": self.truncated(view)}, x, noise, mask)

        return {"predict": predict, "floats_sent": {"adaptor": self.floats_sent}}

    def added_to(self, method: Method, update: Callable[[ServerView], View]) -> Method:
        """Return the method with the PRIVATE group "rank", whose value "components" is the rank of a client.

        `update` is the server's step. It reads the truncated adaptor of each client as a vector (see `flatten`).
        """
        rank = Group(scope=Scope.PRIVATE, init=lambda: {"components": self.at_start.float()}, statistic=True)
        server = ServerStep(client_vector=lambda view: flatten(self.truncated(view)), update=update)
        return replace(method, groups={**method.groups, "rank": rank}, server=server)


def client_ranks(problem: Problem, adaptors: Adaptors, least: int) -> ClientRanks:
    """Return ranks that are drawn from {least, …, rank} with equal probability for each client.

    A layer whose rank is lower than that of a client has all its components.
    """
    sizes = adaptors.init(Stream(0, "size"))
    most = max(len(tensor) for name, tensor in sizes.items() if name.endswith(".A"))
    ranks = least + Stream(problem.seed, "client ranks").integers("rank", problem.clients, max(1, most - least + 1))
    values, counts = ranks.unique(return_counts=True)
    total = sum(
        truncated_size(adaptors, rank) * count for rank, count in zip(values.tolist(), counts.tolist(), strict=True)
    )
    mean = round(total / len(ranks))
    return ClientRanks(ranks, (mean, mean))


def truncated_size(adaptors: Adaptors, rank: int) -> int:
    """Return the number of parameters of an adaptor if each layer keeps at most `rank` of its components."""
    return sum(
        tensor.numel() if name.endswith(".bias") else tensor.numel() // r * min(rank, r)
        for name, tensor in adaptors.init(Stream(0, "size")).items()
        for r in [tensor.shape[1] if name.endswith(".B") else len(tensor)]
    )

"""HetLoRA (arXiv 2401.06432): adaptors of different rank, weighed by the size of their products."""

from dataclasses import replace
from typing import Any

import torch

from floral.adaptors.aggregation import flatten, keep_components, product_norm, require_no_groups, unflatten
from floral.adaptors.attach import Adaptors
from floral.core.spec import Group, Method, Problem, Scope, ServerStep
from floral.core.streams import Stream
from floral.methods.fedit import shared
from floral.methods.floral import adaptors_of


def build(
    problem: Problem, *, least: int, lam: float, gamma: float, weighting: str, base: str, warmup: float, **adaptor: Any
) -> Method:
    """Client k trains the first r_k components of the shared adaptor, r_k drawn from {least, …, rank}, and sends them;
    the server pads with zeros and averages A and B by themselves, with weights ∝ ‖B_k A_k‖_F ("norm") or p(k) ("rows").

    Training adds λ Σ_layers ‖B[:, γr:]‖_F ‖A[γr:, :]‖_F over the components γr_k ≤ i < r_k; where this product ends a
    round below its start, r_k ← max(least, ⌊γ r_k⌋) from the next round on (γ = 1: neither). Chosen here, where
    accounts leave it open: the norm is that of the whole adaptor, biases are averaged with the same weights, all norms
    zero fall back to p(k), a layer of lower rank than r_k has all its components, every client is served the whole
    adaptor, and λ = 0.01. The server takes the mean of the adaptors as it is, whatever its learning rate. What is
    sent is billed at the ranks of the start, the mean over the clients. Base and s as in `fedit`.

    least = rank with γ = 1 and weights "rows" is FedIT.
    """
    adaptors = adaptors_of(problem, **adaptor)
    require_no_groups(adaptors)
    most = max(len(t) for name, t in adaptors.init(Stream(0, "size")).items() if name.endswith(".A"))
    ranks = least + Stream(problem.seed, "client ranks").integers("rank", problem.clients, max(1, most - least + 1))

    def own(view):
        return keep_components(view["adaptor"], 0, view["rank"]["components"])

    def truncated(view, x, noise, mask):
        return serve({**view, "adaptor": own(view)}, x, noise, mask)

    def tail(params, rank):
        part = keep_components(params, torch.floor(gamma * rank), rank)
        products = [
            torch.linalg.vector_norm(part[name]) * torch.linalg.vector_norm(part[f"{name.removesuffix('.A')}.B"])
            for name in sorted(part)
            if name.endswith(".A")
        ]
        return torch.stack(products).sum()

    def penalty(view, received, noise):
        return lam * tail(view["adaptor"], view["rank"]["components"])

    def prune_and_average(served):
        if "adaptor" not in served.means:
            return {}
        sent = served.client_vectors
        clients, share = unflatten(sent.vectors, served.means["adaptor"]), sent.share.to(sent.vectors.dtype)
        rank = served.before["rank"]["components"]
        mine = rank[sent.clients]
        ended = torch.vmap(tail)(clients, mine)
        began = torch.vmap(tail, in_dims=(None, 0))(served.before["adaptor"], mine)
        pruned = torch.where(ended < began, torch.floor(gamma * mine).clamp(min=least), mine)
        changed = {"rank": {"components": rank.index_copy(0, sent.clients, pruned)}}
        norms = torch.vmap(product_norm)(clients)
        by_size = torch.where(norms.sum() > 0, norms / norms.sum().clamp(min=1e-30), share)
        weight = by_size if weighting == "norm" else share
        changed["adaptor"] = {name: torch.tensordot(weight, t, 1) for name, t in clients.items()}
        return changed

    distinct, clients_of = ranks.unique(return_counts=True)
    sizes_sent = [truncated_size(adaptors, rank) for rank in distinct.tolist()]
    total_size = sum(size * count for size, count in zip(sizes_sent, clients_of.tolist(), strict=True))
    sent = (round(total_size / len(ranks)),) * 2
    penalised = penalty if gamma < 1 else None
    method = shared(
        problem,
        adaptors,
        base,
        warmup,
        predict=truncated,
        penalty=penalised,
        floats_sent={"adaptor": sent},
    )
    serve = method.predict
    components = Group(scope=Scope.PRIVATE, init=lambda: {"components": ranks.float()}, statistic=True)
    return replace(
        method,
        groups={**method.groups, "rank": components},
        server=ServerStep(client_vector=lambda view: flatten(own(view)), update=prune_and_average),
    )


def truncated_size(adaptors: Adaptors, rank: int) -> int:
    """Floats of an adaptor with no more than `rank` components in a layer."""
    start = adaptors.init(Stream(0, "size"))
    return sum(
        t.numel() if name.endswith(".bias") else t.numel() // r * min(rank, r)
        for name, t in start.items()
        for r in [t.shape[1] if name.endswith(".B") else len(t)]
    )

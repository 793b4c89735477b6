"""HetLoRA (arXiv 2401.06432): adaptors whose ranks differ between clients, averaged with weights ∝ ‖B_k A_k‖."""

from typing import Any

import torch

from floral.adaptors.aggregation import keep_components, product_norm, require_no_groups, unflatten
from floral.adaptors.attach import adaptors_of
from floral.adaptors.client_ranks import client_ranks
from floral.core.spec import Method, Problem
from floral.methods.fedit import fedit_method


def build(
    problem: Problem, *, least: int, lam: float, gamma: float, weighting: str, base: str, warmup: float, **adaptor: Any
) -> Method:
    """HetLoRA: clients train adaptors of different ranks; the server pads them with zeros and averages them.

    Client k trains and sends only the first r_k components of the shared adaptor. Its rank r_k is drawn from {least, …,
    rank}. The server averages the factors A and B separately. Client k has the weight ∝ ‖B_k A_k‖_F
    (`weighting="norm"`) or p(k), its share of the training samples (`weighting="rows"`).

    The loss has a penalty on the last components i of the client's adaptor, γ r_k ≤ i < r_k. It is λ times the sum over
    all layers of ‖B‖_F·‖A‖_F, restricted to these components. If this sum is smaller at the end of a round than at the
    start, the rank becomes r_k ← max(least, ⌊γ r_k⌋) from the next round on. With γ = 1 there is no penalty, and ranks
    do not change.

    Limiting case: with least = rank, γ = 1 and `weighting="rows"` this is FedIT.

    Every client predicts with the full adaptor. The options `base` and `warmup` are as in `fedit`.

    Costs: the traffic is counted with the initial ranks, as the mean over the clients. The last download of the full
    adaptor, with which clients predict, is not counted.
    """
    adaptors = adaptors_of(problem, **adaptor)
    require_no_groups(adaptors)
    ranks = client_ranks(problem, adaptors, least)

    def tail(params, rank):
        """Return the sum over all layers of ‖B‖_F·‖A‖_F, restricted to the last components of the factors A and B.

        These are the components from γ·rank to rank, and ‖·‖_F is the Frobenius norm.
        """
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
        old = rank[sent.clients]
        ended = torch.vmap(tail)(clients, old)
        began = torch.vmap(tail, in_dims=(None, 0))(served.before["adaptor"], old)
        pruned = torch.where(ended < began, torch.floor(gamma * old).clamp(min=least), old)
        changed = {"rank": {"components": rank.index_copy(0, sent.clients, pruned)}}
        norms = torch.vmap(product_norm)(clients)
        by_size = torch.where(norms.sum() > 0, norms / norms.sum().clamp(min=1e-30), share)
        weight = by_size if weighting == "norm" else share
        changed["adaptor"] = {name: torch.tensordot(weight, t, 1) for name, t in clients.items()}
        return changed

    phase = {"penalty": penalty if gamma < 1 else None, **ranks.phase(adaptors)}
    return ranks.added_to(fedit_method(problem, adaptors, base, warmup, **phase), prune_and_average)

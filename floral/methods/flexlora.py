"""FlexLoRA (arXiv 2402.11505): average the products B A of the clients, and factorise the mean."""

from dataclasses import replace
from typing import Any, Literal

from floral.adaptors.aggregation import flatten, require_matrix_products, svd_factors, unflatten
from floral.adaptors.attach import adaptors_of
from floral.adaptors.client_ranks import client_ranks
from floral.core.spec import Method, Problem, ServerStep
from floral.methods.fedit import fedit_method


def build(problem: Problem, *, least: int | Literal["rank"], base: str, warmup: float, **adaptor: Any) -> Method:
    """FlexLoRA: average the products B_k A_k of the clients' adaptors, and factorise the mean with an SVD.

    The new product B A is the best approximation, with the adaptor's rank, of the mean Σ_k p(k) B_k A_k. U S Vᵀ is the
    singular value decomposition (SVD) of this mean, and p(k) is the weight of client k.

    With `least="rank"`, all clients have the same rank. With a number, the rank r_k of client k is drawn from
    {least, …, rank}. The client trains and sends the first r_k components, which are the largest of the mean. All
    clients predict with the full adaptor. Costs: the last download of the full adaptor is not counted.

    Limiting case: if the mean already has at most the adaptor's rank (as with one client per round), the averaged model
    equals that of FedIT.

    S can be divided between A and B in many ways. This does not change B A, but it decides whether training is stable
    (see `svd_factors`). The server computes one SVD per layer and round. The options `base` and `warmup` are as in
    `fedit`.

    Raises:
        Refused: the adaptor of a convolution is not a single matrix product, so the mean has no such SVD.
    """
    adaptors = adaptors_of(problem, **adaptor)
    require_matrix_products(adaptors)

    def decompose(served):
        if "adaptor" not in served.means:
            return {}
        clients, mean = unflatten(served.client_vectors.vectors, served.means["adaptor"]), served.means["adaptor"]
        share = served.client_vectors.share.to(served.client_vectors.vectors.dtype)
        return {"adaptor": svd_factors(adaptors, clients, share, mean)}

    if least == "rank":
        method = fedit_method(problem, adaptors, base, warmup)
        return replace(method, server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=decompose))
    ranks = client_ranks(problem, adaptors, least)
    return ranks.added_to(fedit_method(problem, adaptors, base, warmup, **ranks.phase(adaptors)), decompose)

"""FlexLoRA (arXiv 2402.11505) with equal ranks: the server averages products and takes them apart by an SVD."""

from dataclasses import replace
from typing import Any

from floral.adaptors.aggregation import flatten, require_matrix_products, svd_factors, unflatten
from floral.core.spec import Method, Problem, ServerStep
from floral.methods.fedit import shared
from floral.methods.floral import adaptors_of


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """B A = the best approximation of Σ_k p(k) B_k A_k of the adaptor's rank, from its SVD U S Vᵀ.

    The paper's clients have ranks of their own and get as many components; here all have the same (`hetlora` differs).
    How S is split between the factors is free, but decides whether they train stably (`svd_factors`): with A = Vᵀ and a
    joint base, digits diverge. Base and s as in `fedit`. The server takes an SVD per layer and round, whatever its
    learning rate of the factors.

    Where the product has the adaptor's rank (one client in a round) the served model is FedIT's.

    Raises:
        Refused: a convolution's adaptor is not one matrix product.
    """
    adaptors = adaptors_of(problem, **adaptor)
    require_matrix_products(adaptors)

    def decompose(served):
        if "adaptor" not in served.means:
            return {}
        clients, mean = unflatten(served.client_vectors.vectors, served.means["adaptor"]), served.means["adaptor"]
        share = served.client_vectors.share.to(served.client_vectors.vectors.dtype)
        return {"adaptor": svd_factors(adaptors, clients, share, mean)}

    method = shared(problem, adaptors, base, warmup)
    return replace(method, server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=decompose))

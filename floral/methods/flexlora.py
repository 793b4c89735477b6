"""FlexLoRA (arXiv 2402.11505) with equal ranks: average products and factorise the mean with an SVD."""

from dataclasses import replace
from typing import Any

from floral.adaptors.aggregation import flatten, require_matrix_products, svd_factors, unflatten
from floral.core.spec import Method, Problem, ServerStep
from floral.methods.fedit import fedit_method
from floral.methods.floral import adaptors_of


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FlexLoRA: average the clients' products, and factorise the mean with an SVD.

    B A is the best approximation of Σ_k p(k) B_k A_k = U S Vᵀ with the adaptor's rank.

    Limiting case: where the mean of the products has at most the adaptor's rank (one client per round), the served
    model is FedIT's.

    The paper's clients have different ranks and receive as many components. Here all ranks are equal (for other ranks
    see `hetlora`). The split of S between the factors is free, but decides whether training is stable (`svd_factors`):
    with A = Vᵀ and a joint base, the digits task diverges. Base and scale s as in `fedit`. The server computes one SVD
    per layer and round, and does not apply its learning rate to the factors.

    Raises:
        Refused: the adaptor of a convolution is not one matrix product.
    """
    adaptors = adaptors_of(problem, **adaptor)
    require_matrix_products(adaptors)

    def decompose(served):
        if "adaptor" not in served.means:
            return {}
        clients, mean = unflatten(served.client_vectors.vectors, served.means["adaptor"]), served.means["adaptor"]
        share = served.client_vectors.share.to(served.client_vectors.vectors.dtype)
        return {"adaptor": svd_factors(adaptors, clients, share, mean)}

    method = fedit_method(problem, adaptors, base, warmup)
    return replace(method, server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=decompose))

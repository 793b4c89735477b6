"""FlexLoRA (arXiv 2402.11505) with equal ranks: the server averages products and takes them apart by an SVD."""

from dataclasses import replace
from typing import Any

from floral.adaptors.aggregation import as_matrices, decomposed, flat, unflat
from floral.core.spec import Method, Problem
from floral.methods.fedit import shared
from floral.methods.floral import adaptors_of


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """B A = the best approximation of Σ_k p(k) B_k A_k of the adaptor's rank, from its SVD U S Vᵀ.

    The paper's clients have ranks of their own and get as many components; here all have the same (`hetlora` differs).
    How S is split between the factors is free, but decides whether they train stably (`decomposed`): with A = Vᵀ and a
    joint base, digits diverge. Base and s as in `fedit`. The server takes an SVD per layer and round, whatever its
    learning rate of the factors.

    Where the product has the adaptor's rank (one client in a round) the served model is FedIT's.

    Raises:
        Refused: a convolution's adaptor is not one matrix product.
    """
    adaptors = adaptors_of(problem, **adaptor)
    as_matrices(adaptors)

    def server(served):
        if "adaptor" not in served.means:
            return {}
        clients, mean = unflat(served.singles.vectors, served.means["adaptor"]), served.means["adaptor"]
        share = served.singles.share.to(served.singles.vectors.dtype)
        return {"adaptor": decomposed(adaptors, clients, share, mean)}

    return replace(shared(problem, adaptors, base, warmup), single=lambda view: flat(view["adaptor"]), server=server)

"""FedIT (arXiv 2305.05644): one low-rank adaptor for all, its factors A and B averaged each by itself."""

from typing import Any

from floral.methods.floral import adaptors_of
from floral.parts import whole
from floral.spec import Group, Method, Problem, Scope
from floral.streams import Stream


def build(problem: Problem, **adaptor: Any) -> Method:
    """Base and adaptor SHARED: W + B A with A = Σ_k p(k) A_k and B = Σ_k p(k) B_k.

    The product of the means is not the mean of the products: mean(B_k A_k) - B A is the covariance of the factors over
    the clients. The paper adapts a frozen pretrained base and scales the adaptor by s = alpha/r; here the base is
    trained and averaged too, and s = 1, as for FLoRAL, with its start of A and without its preconditioner.

    The adaptor frozen at zero is FedAvg. It is FLoRAL with one cluster and without a preconditioner.
    """
    adaptors = adaptors_of(problem, **adaptor)
    return Method(
        groups={
            **whole(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "adaptor": Group(
                scope=Scope.SHARED, init=lambda: adaptors.init(Stream(problem.seed, "adaptors")), lr=problem.lr
            ),
        },
        predict=adaptors.serve(("adaptor",)),
        draws=adaptors.model.draws,
        passes=adaptors.passes(problem.shape, problem.batch, clusters=1),
    )

"""pFedPara (arXiv 2108.06098): FedPara with a shared and a private low-rank matrix in each weight."""

from floral.core.spec import Method, Problem
from floral.methods.fedpara import hadamard_method


def build(problem: Problem, *, gamma: float) -> Method:
    """pFedPara: each weight is W = W₁ ⊙ (W₂ + 1) with W₁ = X₁ Y₁ᵀ SHARED and W₂ = X₂ Y₂ᵀ PRIVATE.

    Both train together in each step. W₁ and all parameters without factors, such as biases, are averaged as in FedAvg.
    W₂ has the same initial values for all clients. The ranks are those of `fedpara`.

    Limiting cases: with W₂ fixed at 0, this is FedPara with X₂ Y₂ᵀ fixed at 1. If the server averaged W₂ too, all
    clients would have one model.

    Raises:
        Refused: the weights of the task's model start with values of a file, which the factors cannot have.
    """
    return hadamard_method(problem, gamma, personal=True)

"""FedEx-LoRA (arXiv 2410.09432): FedIT, and the base corrects the error of averaging A and B separately."""

from dataclasses import replace
from typing import Any

from floral.adaptors.aggregation import added_by_server, averaging_error, download_floats, flatten, unflatten
from floral.adaptors.attach import adaptors_of
from floral.core.spec import Method, Problem, ServerStep
from floral.methods.fedit import fedit_method


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FedEx-LoRA: average the factors A and B separately as in FedIT, and add the error of this average to the base W.

        A = Σ_k p(k) A_k,    B = Σ_k p(k) B_k,    W ← W + Σ_k p(k) B_k A_k - B A

    After this, every layer W + B A is the mean of the clients' layers W + B_k A_k. p(k) is the weight of client k.

    Limiting case: with one client per round the error is zero, and this is FedIT.

    On a task with a frozen base, the SHARED group "weights" has the frozen weights of the adapted layers, and the error
    is added to them.

    The options `base` and `warmup` are as in `fedit`. With base="joint", W on the right side is the averaged base, and
    the result is again the mean of the clients' layers. The correction is exact if the server's learning rate is 1.

    Costs: with a frozen base, a client downloads all factors of the round, or the correction if it is smaller (see
    `download_floats`).
    """
    adaptors = adaptors_of(problem, **adaptor)
    weights = adaptors.frozen_weights(biases=False)
    sum_sent = (download_floats(adaptors, problem.cohort, biases=False), 0)
    floats_sent = {"weights": sum_sent} if weights else {} if base == "joint" else {"base": sum_sent}

    def add_error(served):
        if "adaptor" not in served.means:
            return {}
        clients, mean = unflatten(served.client_vectors.vectors, served.means["adaptor"]), served.means["adaptor"]
        share = served.client_vectors.share.to(served.client_vectors.vectors.dtype)
        return added_by_server(served, averaging_error(adaptors, clients, share, mean))

    method = fedit_method(problem, adaptors, base, warmup, floats_sent=floats_sent)
    return replace(
        method,
        groups={**method.groups, **weights},
        predict=adaptors.predictor(("adaptor",), base=("base", *weights)),
        adapted=adaptors.summed(("adaptor",), base=("base", *weights)),
        server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=add_error),
    )

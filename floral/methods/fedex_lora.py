"""FedEx-LoRA (arXiv 2410.09432): FedIT whose server puts into the base what averaging the factors misses."""

from dataclasses import replace
from typing import Any

from floral.adaptors.aggregation import averaging_error, download_floats, flatten, unflatten
from floral.core.spec import Method, Problem, ServerStep
from floral.methods.fedit import shared
from floral.methods.floral import adaptors_of


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """A = Σ_k p(k) A_k and B = Σ_k p(k) B_k as in FedIT, and W ← W + Σ_k p(k) B_k A_k - B A: the served layer is the
    mean of the clients' layers W + B_k A_k.

    Base and s as in `fedit`; with base="joint" W is the averaged base, and the sum is again the mean of the clients'.
    The paper weighs clients alike, here p(k) ∝ n_k as everywhere. The residual is that of the means, so it is exact
    where the server takes them as they are (learning rate 1). To a client with a frozen base it costs what `download_floats`
    counts: all factors of the round, or the residual itself where that is smaller.

    With one client in a round the residual is zero: FedIT.
    """
    adaptors = adaptors_of(problem, **adaptor)
    floats_sent = {} if base == "joint" else {"base": (download_floats(adaptors, problem.cohort, biases=False), 0)}

    def add_residual(served):
        if "adaptor" not in served.means:
            return {}
        clients, mean = unflatten(served.client_vectors.vectors, served.means["adaptor"]), served.means["adaptor"]
        share = served.client_vectors.share.to(served.client_vectors.vectors.dtype)
        held = served.after.get("base", served.before["base"])
        missed = averaging_error(adaptors, clients, share, mean)
        return {"base": held | {name: held[name] + value for name, value in missed.items()}}

    method = shared(problem, adaptors, base, warmup, floats_sent=floats_sent)
    return replace(method, server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=add_residual))

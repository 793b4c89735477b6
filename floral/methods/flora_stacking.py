"""FLoRA (arXiv 2409.05976): stack the clients' adaptors, and add the product of the stacks to the base."""

from dataclasses import replace
from typing import Any

from floral.adaptors.aggregation import download_floats, flatten, restart, unflatten
from floral.adaptors.attach import adaptors_of, factor
from floral.core.spec import Method, Problem, ServerStep
from floral.core.streams import Stream
from floral.methods.fedit import fedit_method


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FLoRA: in every round, add the mean product of the clients' adaptors to the base, then start with new adaptors.

    The server computes W ← W + Σ_k p(k) B_k A_k, where p(k) is the weight of client k. This is the exact product of two
    stacks over the M clients of the round, [B_1 … B_M] and [p(1) A_1; …; p(M) A_M]. Then all clients start again with B
    = 0 and the same new random A. The biases of the adaptors are added to the base in the same way.

    Limiting case: with the adaptor frozen at zero this is FedAvg.

    The options `base` and `warmup` and the scale s of an adaptor are as in `fedit`. Here all clients have the same
    rank. The server's learning rate applies to the base only, not to the products.

    Costs: a client downloads the new A and the stacks of M adaptors, or the sum of their products if it is smaller (see
    `download_floats`). With base="joint" the base is sent anyway, and it contains the sum.
    """
    adaptors = adaptors_of(problem, **adaptor)
    start = adaptors.init(Stream(problem.seed, "adaptors"))
    floats_sent = {"adaptor": (sum(t.numel() for t in factor(start, "A").values()), adaptors.size)}
    if base != "joint":
        floats_sent["base"] = (download_floats(adaptors, problem.cohort, biases=True), 0)

    def stack(served):
        if "adaptor" not in served.means:
            return {}
        vectors, share = served.client_vectors.vectors, served.client_vectors.share
        merged = adaptors.products(unflatten(vectors, served.means["adaptor"]), share.to(vectors.dtype))
        base_params = served.after.get("base", served.before["base"])
        drawn = adaptors.init(Stream(problem.seed, "adaptors").at(served.round, 0))
        return {
            "base": base_params | {name: base_params[name] + value for name, value in merged.items()},
            "adaptor": restart({name: t.to(vectors) for name, t in drawn.items()}),
        }

    method = fedit_method(problem, adaptors, base, warmup, floats_sent=floats_sent)
    return replace(method, server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=stack))

"""FLoRA (arXiv 2409.05976): the clients' adaptors are stacked, which is exact, and go into the base every round."""

from dataclasses import replace
from typing import Any

from floral.adaptors.aggregation import download_floats, flatten, restart, unflatten
from floral.adaptors.attach import factor
from floral.core.spec import Method, Problem, ServerStep
from floral.core.streams import Stream
from floral.methods.fedit import shared
from floral.methods.floral import adaptors_of


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """W ← W + Σ_k p(k) B_k A_k, the product of the stacks [B_1 … B_M] and [p_1 A_1; …; p_M A_M]; then B = 0 and a new
    random A, the same for all.

    Biases go into the base likewise. Base and s as in `fedit`; here all clients have the same rank. A client gets the
    stacks, M adaptors, or the sum of the products where that is smaller (`download_floats`), and the new A; with base="joint" the
    base travels anyway and carries the sum. The server's learning rate is that of the base; products are taken as they
    are.

    The adaptor frozen at zero is FedAvg.
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
        held = served.after.get("base", served.before["base"])
        drawn = adaptors.init(Stream(problem.seed, "adaptors").at(served.round, 0))
        return {
            "base": held | {name: held[name] + value for name, value in merged.items()},
            "adaptor": restart({name: t.to(vectors) for name, t in drawn.items()}),
        }

    method = shared(problem, adaptors, base, warmup, floats_sent=floats_sent)
    return replace(method, server=ServerStep(client_vector=lambda view: flatten(view["adaptor"]), update=stack))

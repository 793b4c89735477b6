"""FLoRA (arXiv 2409.05976): stack the clients' adaptors, and add the product of the stacks to the base."""

from typing import Any

import torch

from floral.adaptors.aggregation import added_by_server, download_floats, flatten, unflatten
from floral.adaptors.attach import adaptors_of, factor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import distinct_starts, fedavg_phase, model_groups, phases_with_warmup


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FLoRA: in every round, each client trains a new adaptor, and their mean product is added to the base.

    At the start of a round, client k has a random A_k of its own and B_k = 0. After local training, the server computes
    W ← W + Σ_k p(k) B_k A_k, where p(k) is the weight of client k. This is the exact product of two stacks over the M
    clients of the round, [B_1 … B_M] and [p(1) A_1; …; p(M) A_M]. Its rank is up to M times that of an adaptor. The
    biases of the adaptors are added to the base in the same way. Clients predict with the base.

    Limiting case: with base="joint" and the adaptors frozen at zero this is FedAvg.

    The options `base` and `warmup` are as in `fedit`. On a task with a frozen base, the SHARED group "weights" has the
    frozen parameters of the adapted layers, and the products are added to them.

    A is PRIVATE: it holds the random A_k of the client's next round. B is SHARED, and is zero after each round.

    Costs: a client sends its adaptor, and downloads the stacks of M adaptors, or the sum of their products if it is
    smaller (see `download_floats`). With base="joint" the base is sent anyway, and it contains the sum. A counts among
    the floats that a client keeps privately, although the client could draw it again.
    """
    adaptors, stream = adaptors_of(problem, **adaptor), Stream(problem.seed, "adaptors")
    weights = adaptors.frozen_weights(biases=True)

    def init_a(stream: Stream):
        return factor(adaptors.init(stream), "A")

    start_b = {name: torch.zeros_like(value) for name, value in factor(adaptors.init(stream), "B").items()}
    size_a, size_b = (sum(t.numel() for t in part.values()) for part in (init_a(stream), start_b))
    floats_sent = {"A": (0, size_a), "B": (0, size_b)}
    if weights or base != "joint":
        floats_sent["weights" if weights else "base"] = (download_floats(adaptors, problem.cohort, biases=True), 0)

    def stack(served: ServerView) -> View:
        if "B" not in served.means:
            return {}
        assert served.client_vectors is not None
        clients, vectors = served.client_vectors.clients, served.client_vectors.vectors
        one_client = {name: value[0] for name, value in served.before["A"].items()} | served.before["B"]
        merged = adaptors.products(unflatten(vectors, one_client), served.client_vectors.share.to(vectors.dtype))
        next_a = {name: value.clone() for name, value in served.before["A"].items()}
        for client in clients.tolist():
            for name, value in init_a(stream.at(served.round, client)).items():
                next_a[name][client] = value
        return {
            **added_by_server(served, merged),
            "A": next_a,
            "B": {name: torch.zeros_like(value) for name, value in served.before["B"].items()},
        }

    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            **weights,
            "A": Group(
                scope=Scope.PRIVATE, init=lambda: distinct_starts(init_a, stream, problem.clients), lr=problem.lr
            ),
            "B": Group(scope=Scope.SHARED, init=lambda: start_b, lr=problem.lr),
        },
        predict=adaptors.predictor(("A", "B"), base=("base", *weights)),
        adapted=adaptors.summed(("A", "B"), base=("base", *weights)),
        phases=phases_with_warmup(
            Phase(train=("base", "A", "B"), floats_sent=floats_sent),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        server=ServerStep(client_vector=lambda view: flatten({**view["A"], **view["B"]}), update=stack),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

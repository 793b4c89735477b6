"""pFedHN (arXiv 2103.04628): a hypernetwork at the server makes each client's model from an embedding of the client."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.adaptors.aggregation import flatten, unflatten
from floral.core.spec import Cost, Group, Method, Params, Phase, Problem, Refused, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.gradients import gradient
from floral.toolkit.parts import head_name, model_groups, predictor, repeated_start


def build(problem: Problem, *, embedding: int, hidden: int, depth: int, rate: float, personal_head: bool) -> Method:
    """pFedHN: client k trains and serves the model θ_k = h(v_k; φ), which a hypernetwork h makes of its embedding v_k.

    h is a multi-layer perceptron with `depth` hidden layers after its first one, all of `hidden` units. At the start of
    a round, a client receives θ_k. It trains θ_k to θ'_k and sends θ'_k. With Δ_k = θ'_k - θ_k, the server moves

        φ ← φ + rate·Σ_k p(k) (∂h(v_k; φ)/∂φ)ᵀ Δ_k,    v_k ← v_k + rate·(∂h(v_k; φ)/∂v_k)ᵀ Δ_k

    φ is FROZEN for the clients: only the server has it. v_k [embedding] is PRIVATE, and normal with variance 1 at
    first. θ_k is PRIVATE and computed anew in each round. With `personal_head` (pFedHN-PC), the head, the last linear
    layer, does not come from h: it is PRIVATE, and its client trains it further in every round.

    Limiting case: with hidden = 0, h is only the bias of its output layer, and with rate = 1 this is FedAvg.

    A client that joins after training starts with v_k = 0 and trains v_k under the fixed h. Running statistics are
    PRIVATE.

    Costs: a client receives θ_k and sends θ'_k. The computation of the server is not counted.

    Raises:
        Refused: personal_head is true, and the model has no body before a last linear layer, or the body is frozen.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    drawn, clients, predict_with = Stream(problem.seed, "hypernetwork"), problem.clients, predictor(model)
    head = head_name(model) if personal_head else None
    start, of_head = (
        {n: t for n, t in model.init(stream).items() if in_head(n, head) == is_in} for is_in in (False, True)
    )
    if not start:
        raise Refused(
            "only the head is trained, and it stays with its client, so the hypernetwork has nothing to make; use the "
            "variant `pfedhn`, or `base: trained`"
        )
    floats = flatten(start).numel()

    def private(params: Params) -> Group:
        return Group(scope=Scope.PRIVATE, init=lambda: repeated_start(params, clients), lr=problem.lr)

    def phi_start() -> Params:
        output = {"out.weight": torch.zeros(floats, hidden), "out.bias": flatten(start)}
        return hidden_layers(drawn, [embedding] + [hidden] * (depth + 1)) | output

    def embedding_start() -> Params:
        return dict.fromkeys(("now", "before"), drawn.normal("embeddings", (clients, embedding)))

    def model_of_client(view: View) -> Params:
        vector = hypernetwork(view["hypernetwork"], view["embedding"]["now"])
        return {name: t[0] for name, t in unflatten(vector[None], start).items()}

    def predict(view, x, noise, mask):
        return predict_with({**view, "base": {**view["base"], **view.get("head", {})}}, x, noise, mask)

    def assign(view, held):
        now = view["embedding"]["now"]
        return {"base": model_of_client(view), "embedding": {"now": now, "before": now}}

    def after_training(view, received, held):
        before = view["embedding"]["before"]
        target = flatten(view["base"])

        def progress(embedding):
            vector = hypernetwork(view["hypernetwork"], embedding["v"])
            return (vector * (target - vector).detach()).sum()

        return {"embedding": {"now": before + rate * gradient(progress)({"v": before})["v"], "before": before}}

    def update(served: ServerView) -> View:
        assert served.client_vectors is not None
        at, share = served.client_vectors.clients, served.client_vectors.share
        phi, before = served.before["hypernetwork"], served.before["embedding"]["before"][at]
        sent = served.client_vectors.vectors

        def progress(phi):
            vectors = hypernetwork(phi, before)
            return (vectors * (share[:, None] * (sent - vectors).detach()).to(vectors.dtype)).sum()

        slope = gradient(progress)(phi)
        return {"hypernetwork": {name: t + rate * slope[name] for name, t in phi.items()}}

    return Method(
        groups={
            **model_groups(model, Scope.PRIVATE, stream, problem.lr, holders=clients),
            "base": private(start),
            **({"head": private(of_head)} if of_head else {}),
            "hypernetwork": Group(scope=Scope.FROZEN, init=phi_start, statistic=True),
            "embedding": Group(scope=Scope.PRIVATE, init=embedding_start, statistic=True),
        },
        predict=lambda view, x, noise, mask: predict({**view, "base": model_of_client(view)}, x, noise, mask),
        phases=(Phase(train=("base", "head") if of_head else ("base",), predict=predict),),
        assign=assign,
        after_training=after_training,
        server=ServerStep(client_vector=lambda view: flatten(view["base"]), update=update),
        noise=model.noise,
        join=lambda view: {"embedding": {name: torch.zeros_like(t) for name, t in view["embedding"].items()}},
        cost=Cost(floats_sent={"base": (floats, floats)}, floats_served={"base": floats}),
    )


def in_head(name: str, head: str | None) -> bool:
    """Return whether a parameter belongs to the layer `head`."""
    return name.rpartition(".")[0] == head


def hidden_layers(stream: Stream, sizes: Sequence[int]) -> Params:
    """Return the initial weights and biases of linear layers, uniform as in PyTorch. Their widths are `sizes`."""
    params: Params = {}
    for at, (inputs, outputs) in enumerate(pairwise(sizes)):
        bound = max(1, inputs) ** -0.5
        params[f"{at}.weight"] = stream.uniform(f"{at}.weight", (outputs, inputs), -bound, bound)
        params[f"{at}.bias"] = stream.uniform(f"{at}.bias", (outputs,), -bound, bound)
    return params


def hypernetwork(params: Params, embedding: Tensor) -> Tensor:
    """Return the models as vectors [..., d] that the hypernetwork makes of the embeddings [..., e].

    ReLU stands between the hidden layers, but not before the output layer.
    """
    hidden = F.linear(embedding, params["0.weight"], params["0.bias"])
    for at in range(1, len(params) // 2 - 1):
        hidden = F.linear(torch.relu(hidden), params[f"{at}.weight"], params[f"{at}.bias"])
    return F.linear(hidden, params["out.weight"], params["out.bias"])

"""Ensemble (the mixture of full models of arXiv 2410.03497): mix the logits of C models with each client's weights."""

import torch

from floral.core.spec import Cost, Method, Problem, Routing, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import (
    forward_backward_passes,
    model_groups,
    model_of_size,
    noise_of_each_model,
    outputs_of_each_model,
    predictor,
)
from floral.toolkit.routes import Router


def build(problem: Problem, *, router: str, top: int, size: str, rank: float | str) -> Method:
    """Ensemble: client k mixes the logits w_c(x) of C full models with its own weights π_kc: Σ_c π_kc w_c(x).

    - `router="learned"`: the models are CLUSTERED, and the router, which gives the weights, is PRIVATE. With `top` 2,
      training mixes the two models of largest weight, and evaluation uses only the model of largest weight (see
      `routes.Router`).
    - `router="optimal"`: the client holds, trains and sends only the model of its true cluster.

    `size="floral"` gives a method for a fair comparison with FLoRAL: the C models together then have at least as many
    parameters as FLoRAL. FLoRAL has |u| + C|a| parameters: |u| in its base, and |a| in each of its C adaptors of rank
    `rank`. Each model is the task's model at the smallest width that is large enough.

    Limiting cases: with C = 1 this is FedAvg. With `size="floral"` and C = 1 it is `fedavg` with `widen="floral"`.

    Raises:
        Refused: with `size="floral"`, the model has no hidden layer, or C of the narrowest models already have as many
            parameters as FLoRAL.
    """
    model, clusters = problem.build_model(), problem.clusters
    if size == "floral":
        from floral.adaptors.attach import adaptors_of  # here, so that runs of full models do not depend on adaptors

        model = model_of_size(problem, model.size / clusters + adaptors_of(problem, rank=rank).size, low=0.0)
    passes, mixer = forward_backward_passes(problem, model), Router(kind=router, problem=problem, top=top)
    models = model_groups(model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=clusters)
    if router == "optimal":
        return Method(
            groups=models,
            predict=predictor(model),
            routing=Routing(cluster_of_client=problem.true_cluster),
            noise=model.noise,
            cost=Cost(passes_per_sample=passes),
        )

    outputs_of = outputs_of_each_model(model)

    def predict(view, x, noise, mask):
        logits, statistics = outputs_of(view, x, noise, mask)
        return torch.tensordot(mixer.mixing_route(view, noise), logits, dims=1), statistics

    return Method(
        groups={**models, **mixer.groups},
        predict=predict,
        routing=mixer.routing,
        noise={**noise_of_each_model(model, clusters), **mixer.noise},
        cost=Cost(passes_per_sample=clusters * passes, floats_sent=mixer.floats_sent),
    )

"""Ensemble (the mixture of full models of arXiv 2410.03497): mix the logits of C models with a router per client."""

import torch

from floral.core.spec import Cost, Method, Problem, Routing, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
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
    """Ensemble: mix the logits of C full models with the client's route, Σ_c π_kc w_c(x).

    - `router="learned"`: all models are CLUSTERED and the router is PRIVATE. `top` 2 mixes the two models of largest
      weight in training and serves the one of largest weight, as in `routes.Router`.
    - `router="optimal"`: the route selects the client's true cluster. The client holds, trains and sends only that
      model.

    `size="floral"` is a control with FLoRAL's number of parameters |u| + C|a| at `rank`: the task's model at the
    smallest width at which C models have that many.

    Limiting cases: C = 1 is FedAvg. With `size="floral"`, C = 1 is `fedavg` with `widen="floral"`.

    Raises:
        Refused: with `size="floral"`, the model has no hidden layer, or C of the narrowest models have more parameters.
    """
    model, clusters = problem.build_model(), problem.clusters
    if size == "floral":
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

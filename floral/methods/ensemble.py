"""Ensemble (the mixture of full models of arXiv 2410.03497): C models, logits mixed by a router per client."""

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
    """`router="learned"`: all models CLUSTERED, the router PRIVATE, logits Σ_c π_kc w_c(x). C = 1 is FedAvg.
    `top` 2 mixes the two likeliest models in training and serves the likeliest, as in `routes.Router`.

    `router="optimal"`: a client's route names its true cluster, so it holds, trains and sends that model alone.

    `size="floral"` is a control: the task's model at the least width at which C of them have FLoRAL's parameter count
    |u| + C|a| at `rank`. With C = 1 it is `fedavg` with `widen="floral"`.

    Raises:
        Refused: with `size="floral"`, the model has no hidden layer, or C of the narrowest have more parameters.
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

    each = outputs_of_each_model(model)

    def predict(view, x, noise, mask):
        logits, statistics = each(view, x, noise, mask)
        return torch.tensordot(mixer.mixing_route(view, noise), logits, dims=1), statistics

    return Method(
        groups={**models, **mixer.groups},
        predict=predict,
        routing=mixer.routing,
        noise={**noise_of_each_model(model, clusters), **mixer.noise},
        cost=Cost(passes_per_sample=clusters * passes, floats_sent=mixer.floats_sent),
    )

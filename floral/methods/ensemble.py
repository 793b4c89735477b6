"""Ensemble (the mixture of full models of arXiv 2410.03497): C models, logits mixed by a router per client."""

import torch

from floral.parts import Router, serve, whole
from floral.spec import Method, Problem, Scope
from floral.streams import Stream


def build(problem: Problem, *, router: str) -> Method:
    """`router="learned"`: all models CLUSTERED, the router PRIVATE, logits Σ_c π_kc w_c(x). C = 1 is FedAvg.

    `router="optimal"`: a client's route names its true cluster, so it holds, trains and sends that model alone.
    """
    model = problem.build_model()
    models = whole(model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=problem.clusters)
    if router == "optimal":
        return Method(groups=models, predict=serve(model), member=problem.true_cluster, draws=model.draws)

    mixer = Router(kind=router, problem=problem)
    dropouts = {name: (batch, problem.clusters, *shape) for name, (batch, *shape) in model.draws.items()}

    def predict(view, x, draws, mask):
        dropout = None if draws is None else {name: draws[name] for name in dropouts}
        over_models = torch.vmap(model, in_dims=(0, 0, None, None if draws is None else 1, None))
        logits, statistics = over_models(view["base"], view.get("statistics", {}), x, dropout, mask)
        mixed = torch.tensordot(mixer.forward(view, draws), logits, dims=1)
        return mixed, {"statistics": statistics} if statistics else {}

    return Method(
        groups={**models, **mixer.groups},
        predict=predict,
        log_route=mixer.log_route,
        draws={**dropouts, **mixer.draws},
        sends=mixer.sends,
        passes=problem.clusters,
    )

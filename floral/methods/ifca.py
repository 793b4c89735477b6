"""IFCA (arXiv 2006.04088): C models, of which a client picks, trains and sends the one with the least training loss."""

import math

import torch

from floral.parts import of_each_model, sample_losses, serve, whole
from floral.spec import Group, Method, Problem, Scope
from floral.streams import Stream


def build(problem: Problem) -> Method:
    """Models CLUSTERED with distinct starts; the choice c(k) = argmin_c Σ_i loss(w_c; x_i, y_i) PRIVATE, made anew at
    the start of each of the client's rounds over all its training rows (running statistics, no dropout). C = 1 is
    FedAvg.

    Model c is averaged over the clients that chose it with p(k|c) ∝ n_k, this project's weights (the authors' code
    takes the plain mean); a model that nobody chose keeps its value. The authors' code tests a client on the model of
    its least TEST loss, which looks at test labels; here a client is served the model of its last choice, and one that
    never took part is served model 0. The choice costs C forward passes per training row and round.
    """
    model = problem.build_model()
    clusters = problem.clusters
    one, each = serve(model), of_each_model(model)
    loss = "mse" if problem.regression else "cross_entropy"

    def assign(view, held):
        outputs, _ = each(view, held.x, None, None)
        losses = sample_losses(loss, outputs, held.y.expand(clusters, *held.y.shape))
        return {"choice": {"cluster": (losses * held.mask).sum(-1).argmin().to(losses.dtype)}}

    def predict(view, x, draws, mask):
        chosen = view["choice"]["cluster"].long().reshape(1)
        own = {
            group: {name: tensor.index_select(0, chosen)[0] for name, tensor in view[group].items()} for group in models
        }
        outputs, changed = one(own, x, draws, mask)
        taken = torch.arange(clusters, device=x.device) == chosen
        statistics = {
            group: {name: torch.where(along(taken, new), new, view[group][name]) for name, new in params.items()}
            for group, params in changed.items()
        }
        return outputs, statistics

    def log_route(view):
        chosen = view["choice"]["cluster"]
        return torch.where(torch.arange(clusters, device=chosen.device) == chosen, 0.0, -math.inf)

    models = whole(model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=clusters)
    start = Group(scope=Scope.PRIVATE, init=lambda: {"cluster": torch.zeros(problem.clients)}, statistic=True)
    return Method(
        groups={**models, "choice": start},
        predict=predict,
        assign=assign,
        assign_passes=clusters / 3,
        log_route=log_route,
        picks=True,
        draws=model.draws,
        sends={"choice": (0, 1)},
    )


def along(taken, new):
    """Booleans [C] shaped to choose between tensors [C, ...] by `new` [...]."""
    return taken.reshape(-1, *(1,) * new.dim())

"""FedDyn (arXiv 2111.04263): a dynamic penalty makes the optima of the clients agree with that of the federation."""

import torch

from floral.core.spec import Group, Method, Optimiser, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, proximal_penalty, repeated_start


def build(problem: Problem, *, alpha: float) -> Method:
    """FedDyn: FedAvg with a penalty in the clients' loss that changes from round to round.

    Client k trains w on f_k(w) - ⟨g_k, w⟩ + alpha/2·‖w - w_received‖². f_k is its training loss, and ⟨·, ·⟩ the inner
    product. After training it sets g_k ← g_k - alpha·(w - w_received). At the optimum of the penalised loss, this is
    the gradient of f_k. With the mean w̄ = Σ_k p(k) w_k over the M clients of the round, out of K, the server sets

        h ← h - alpha·M/K·(w̄ - w_received),    then    w ← w̄ - h/alpha

    The model is SHARED and g_k is PRIVATE. h stays at the server. g_k and h start at 0. The task's server optimiser is
    not used.

    Limiting case: with g_k and h fixed at 0 this is FedProx with mu = alpha.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    near, share = proximal_penalty("base", alpha), problem.cohort / problem.clients

    def penalty(view, received, noise):
        w, g = view["base"], view["gradient"]
        return near(view, received, noise) - torch.stack([(g[name] * w[name]).sum() for name in sorted(w)]).sum()

    def new_gradient(view, received, samples):
        w, start, g = view["base"], received["base"], view["gradient"]
        return {"gradient": {name: g[name] - alpha * (w[name] - start[name]) for name in g}}

    def corrected(served: ServerView) -> View:
        mean, before, old = served.means["base"], served.before["base"], served.before["memory"]
        h = {name: old[name] - alpha * share * (mean[name] - before[name]) for name in old}
        return {"memory": h, "base": {name: mean[name] - h[name] / alpha for name in before}}

    def zeros():
        return {name: torch.zeros_like(value) for name, value in model.init(stream).items()}

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            "gradient": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(zeros(), problem.clients), statistic=True
            ),
            "memory": Group(scope=Scope.FROZEN, init=zeros, statistic=True),
        },
        predict=predictor(model),
        penalty=penalty,
        after_training=new_gradient,
        server=ServerStep(optimiser=Optimiser(kind="sgd", lr=1.0), update=corrected),
        noise=model.noise,
    )

"""Mean-regularised multi-task learning (the objective of arXiv 2002.05516): own models, held near their mean."""

from collections.abc import Mapping

import torch

from floral.core.spec import Batch, Group, Method, Noise, Objective, Problem, Scope, View
from floral.core.streams import Stream
from floral.toolkit.parts import join_from, personal_groups, personal_predictor, proximal_penalty, sgd_step


def build(problem: Problem, *, lam: float) -> Method:
    """w_k PRIVATE and served, m SHARED: the mean Σ_k p(k)·w_k of the models of the last round's clients.

    Each client trains on f_k(w) + lam/2·‖w - m‖² with the m that it received, by the task's epochs of SGD, and uploads
    its w_k; the server's mean of these is the next m. So it goes down the objective Σ_k p(k)·(f_k(w_k) +
    lam/2·‖w_k - m‖²) by turns in the w_k and in m: deterministic, unlike L2GD, which tosses a coin between the two.
    lam = 0 is Local; the default of 0.1 is chosen here. Unlike in Ditto, clients are drawn to the mean of the models
    that they serve, and the server's optimiser has no part in it. A client that never takes part serves the start.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    take = sgd_step()

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
    ) -> tuple[View, View, torch.Tensor]:
        moved, changed, loss = take(objective, trained, fixed, batch, noise, lr)
        return moved, {**changed, "base": moved["personal"]}, loss

    return Method(
        groups={
            # a statistic: m is the mean itself, whatever optimiser the task's server has
            "base": Group(scope=Scope.SHARED, init=lambda: model.init(stream), statistic=True),
            **personal_groups(model, stream, problem.lr, problem.clients),
        },
        predict=personal_predictor(model),
        noise=model.noise,
        local_step=step,
        penalty=proximal_penalty("personal", lam),
        join=join_from(personal="base"),
    )

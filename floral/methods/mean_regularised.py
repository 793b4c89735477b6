"""Mean-regularised multi-task learning (arXiv 2002.05516): personal models that are pulled to their mean."""

from collections.abc import Mapping

import torch

from floral.core.spec import Batch, Group, Method, Noise, Objective, Problem, Scope, View
from floral.core.streams import Stream
from floral.toolkit.parts import join_from, personal_groups, personal_predictor, proximal_penalty, sgd_step


def build(problem: Problem, *, lam: float) -> Method:
    """Mean-regularised multi-task learning: train a personal model w_k per client, with a penalty that pulls it to the
    mean m of these models.

    A client receives m and trains w_k on f_k(w_k) + lam/2·‖w_k - m‖² for the task's epochs of SGD. f_k is its training
    loss. It sends w_k, and predicts with w_k. The server computes the next m as the mean Σ_k p(k)·w_k over the clients
    of the round. w_k is PRIVATE, m is SHARED.

    The objective is Σ_k p(k)·(f_k(w_k) + lam/2·‖w_k - m‖²). It is minimised in turns over the w_k and over m. In
    contrast to Ditto, clients are pulled to the mean of the models with which they predict.

    Limiting case: with lam = 0 this is Local.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    sgd = sgd_step()

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
    ) -> tuple[View, View, torch.Tensor]:
        moved, changed, loss = sgd(objective, trained, fixed, batch, noise, lr)
        return moved, {**changed, "base": moved["personal"]}, loss

    return Method(
        groups={
            # A statistic, so that m is the plain mean even if the task has a server optimiser.
            "base": Group(scope=Scope.SHARED, init=lambda: model.init(stream), statistic=True),
            **personal_groups(model, stream, problem.lr, problem.clients),
        },
        predict=personal_predictor(model),
        noise=model.noise,
        local_step=step,
        penalty=proximal_penalty("personal", lam),
        join=join_from(personal="base"),
    )

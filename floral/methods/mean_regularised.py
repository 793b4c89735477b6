"""Mean-regularised multi-task learning (arXiv 2002.05516): personal models with a penalty to their mean."""

from collections.abc import Mapping

import torch

from floral.core.spec import Batch, Group, Method, Noise, Objective, Problem, Scope, View
from floral.core.streams import Stream
from floral.toolkit.parts import join_from, personal_groups, personal_predictor, proximal_penalty, sgd_step


def build(problem: Problem, *, lam: float) -> Method:
    """Mean-regularised multi-task learning: train personal models with a proximal penalty to their mean.

    w_k is PRIVATE and served. m is SHARED: the mean Σ_k p(k)·w_k over the clients of the last round.

    Each client trains on f_k(w) + lam/2·‖w - m‖² with the received m, for the task's epochs of SGD, and sends its w_k.
    The server's mean of these is the next m. So the objective Σ_k p(k)·(f_k(w_k) + lam/2·‖w_k - m‖²) is minimised in
    turns over the w_k and m. This is deterministic; L2GD of the same paper chooses one of the two steps at random.

    Limiting case: lam = 0 is Local.

    The default lam = 0.1 is a choice made here. In contrast to Ditto, clients are pulled to the mean of the served
    models, and the server's optimiser is not used. A client that never takes part serves the start.
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

"""pFedMe (arXiv 2006.08848): personal models as minimisers of Moreau envelopes around the shared model."""

from collections.abc import Mapping

import torch

from floral.core.spec import Batch, Cost, Method, Noise, Objective, Problem, Refused, Scope, View
from floral.core.streams import Stream
from floral.toolkit.parts import (
    begin_round_from,
    join_from,
    model_groups,
    personal_groups,
    personal_predictor,
    with_loss,
)


def build(problem: Problem, *, lam: float, inner_steps: int) -> Method:
    """pFedMe: train personal models near the shared model, which follows them.

    w is SHARED. θ_k is PRIVATE and served. θ starts a round at w, and on every batch makes K = `inner_steps` steps:

        θ ← θ - lr·(∇f(θ) + lam·(θ - w_k)),    then    w_k ← w_k - lr·lam·(w_k - θ)

    Limiting cases: K = 1 with lr·lam = 1 is FedAvg for w. For many steps θ minimises f(θ) + lam/2·‖θ - w_k‖² on the
    batch.

    Choices, where descriptions of the method differ: θ continues from batch to batch and does not restart at w_k; both
    learning rates are the task's; the server takes the plain mean (the paper's β = 1). The paper's lam = 15 belongs to
    a learning rate of 0.005; the default of 5 is chosen for rates around 0.1. A client that never takes part serves the
    start.

    Raises:
        Refused: lr·lam ≥ 1, where w_k would overshoot θ and θ might not converge.
    """
    if problem.lr * lam >= 1:
        raise Refused(f"lr·lam = {problem.lr * lam:g} must stay below 1: choose lam below {1 / problem.lr:g}")
    model, stream = problem.build_model(), Stream(problem.seed, "model")

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
    ) -> tuple[View, View, torch.Tensor]:
        w, theta = trained["base"], trained["personal"]
        changed: View = {}
        losses = []
        for _ in range(inner_steps):
            gradient, (loss, moved) = torch.func.grad(with_loss(objective), has_aux=True)(
                {"personal": theta}, {**fixed, **changed}, batch, noise
            )
            changed, losses = {**changed, **moved}, [*losses, loss]
            theta = {
                name: value - lr["personal"] * (gradient["personal"][name] + lam * (value - w[name]))
                for name, value in theta.items()
            }
        base = {name: value - lr["base"] * lam * (value - theta[name]) for name, value in w.items()}
        return {"base": base, "personal": theta}, changed, losses[0]

    return Method(
        groups={
            "base": model_groups(model, Scope.SHARED, stream, problem.lr)["base"],
            **personal_groups(model, stream, problem.lr, problem.clients),
        },
        predict=personal_predictor(model),
        noise=model.noise,
        assign=begin_round_from(personal="base"),
        local_step=step,
        cost=Cost(passes_per_sample=inner_steps),
        join=join_from(personal="base"),
    )

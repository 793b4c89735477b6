"""pFedMe (arXiv 2006.08848): train personal models near the shared model, as minimisers of Moreau envelopes."""

from collections.abc import Mapping

import torch

from floral.core.spec import Batch, Cost, Method, Noise, Objective, Problem, Refused, Scope, View
from floral.core.streams import Stream
from floral.toolkit.gradients import gradient_and_loss
from floral.toolkit.parts import (
    begin_round_from,
    join_from,
    model_groups,
    personal_groups,
    personal_predictor,
)


def build(problem: Problem, *, lam: float, inner_steps: int) -> Method:
    """pFedMe: train a personal model θ_k per client near the shared model w, and move w towards it.

    A client predicts with θ_k, which is PRIVATE. w is SHARED. In a round, the client holds a copy w_k of w, and θ_k
    starts at w. On every batch θ_k makes K = `inner_steps` steps, then w_k makes one, with the
    learning rate lr and the loss f on the batch:

        θ_k ← θ_k - lr·(∇f(θ_k) + lam·(θ_k - w_k)),    then    w_k ← w_k - lr·lam·(w_k - θ_k)

    Limiting cases: with K = 1 and lr·lam = 1, w would be trained as in FedAvg. With many steps, θ_k minimises f(θ) +
    lam/2·‖θ - w_k‖² on the batch.

    θ_k continues from batch to batch and does not restart at w_k.

    Raises:
        Refused: lr·lam ≥ 1. Then w_k would overshoot θ_k, and θ_k might not converge.
    """
    if problem.lr * lam >= 1:
        raise Refused(
            f"`lr` times `lam` is {problem.lr * lam:g}, but must be below 1, or training might not converge;"
            f" set `lam` below {1 / problem.lr:g}"
        )
    model, stream = problem.build_model(), Stream(problem.seed, "model")

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
    ) -> tuple[View, View, torch.Tensor]:
        w, theta = trained["base"], trained["personal"]
        changed: View = {}
        losses = []
        for _ in range(inner_steps):
            gradient, loss, moved = gradient_and_loss(objective)(
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

"""APFL (arXiv 2003.13461): each client predicts with a weighted mean of the shared model and its own model."""

from collections.abc import Mapping

import torch

from floral.core.spec import Batch, Cost, Group, Method, Noise, Objective, Problem, Scope, View
from floral.core.streams import Stream
from floral.toolkit.gradients import gradient_and_loss
from floral.toolkit.parts import join_from, model_groups, personal_groups, predictor


def build(problem: Problem, *, alpha: float) -> Method:
    """APFL: client k predicts with a weighted mean v̄ of the shared model w and its own model v_k.

    The mean is taken over the parameters: v̄ = α_k·v_k + (1 - α_k)·w. w is SHARED. v_k and the weight α_k are PRIVATE.

    For each batch, the client first computes all gradients of its loss f. Then w and v_k make one step each, with the
    learning rate lr. α_k makes one step in a round, on its first batch:

        w ← w - lr·∇f(w),    v ← v - lr·α·∇f(v̄),    α ← clip(α - lr·⟨v - w, ∇f(v̄)⟩, 0, 1)

    ⟨·, ·⟩ is the inner product. clip keeps α between 0 and 1.

    Limiting cases: w is trained as in FedAvg for any α. With α fixed at 0, clients predict with FedAvg's model. With α
    fixed at 1, v_k is trained as in Local.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    mixed = predictor(model, "mixed", "personal_statistics")

    def predict(view, x, noise, mask):
        share, w, v = view["alpha"]["alpha"], view["base"], view["personal"]
        # Sorted: α's gradient is a sum over the names, and a checkpoint may restore them in another order.
        mixture = {name: share * v[name] + (1 - share) * w[name] for name in sorted(w)}
        return mixed({**view, "mixed": mixture}, x, noise, mask)

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            **personal_groups(model, stream, problem.lr, problem.clients),
            "alpha": Group(
                scope=Scope.PRIVATE, init=lambda: {"alpha": torch.full((problem.clients,), alpha)}, lr=problem.lr
            ),
            # FROZEN, so that it is 0 again at the start of each round.
            "alpha_steps": Group(scope=Scope.FROZEN, init=lambda: {"count": torch.zeros(())}, statistic=True),
        },
        predict=predict,
        noise=model.noise,
        local_step=step,
        cost=Cost(passes_per_sample=2, floats_served={"personal": 0, "alpha": 0}),
        join=join_from(personal="base", personal_statistics="statistics"),
    )


def step(
    objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
) -> tuple[View, View, torch.Tensor]:
    """Make one local step of the shared model w and the personal model v.

    The first step of a round is also one of the mixing weight α. The step of w uses the gradient of the loss of w
    alone. The steps of v and α use the gradients of the loss of the mixture α·v + (1 - α)·w.
    """
    gradient = gradient_and_loss(objective)
    private = {name: trained[name] for name in ("personal", "alpha")}
    at_zero = {
        **fixed,
        "personal": private["personal"],
        "alpha": {"alpha": torch.zeros_like(private["alpha"]["alpha"])},
    }
    if "statistics" in fixed:
        at_zero["personal_statistics"] = fixed["statistics"]
    of_w, _, shared = gradient({"base": trained["base"]}, at_zero, batch, noise)
    of_private, loss, changed = gradient(private, {**fixed, "base": trained["base"]}, batch, noise)
    gradients = {**of_w, **of_private}
    moved = {
        group: {name: value - lr[group] * gradients[group][name] for name, value in params.items()}
        for group, params in trained.items()
    }
    steps, before = fixed["alpha_steps"]["count"], trained["alpha"]["alpha"]
    moved["alpha"] = {"alpha": torch.where(steps == 0, moved["alpha"]["alpha"].clamp(0, 1), before)}
    changed = {**changed, "alpha_steps": {"count": steps + batch.mask.any()}}
    if shared:
        changed = {**changed, "statistics": shared["personal_statistics"]}
    return moved, changed, loss

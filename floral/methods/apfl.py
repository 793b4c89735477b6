"""APFL (arXiv 2003.13461): each client serves a mixture, in parameter space, of the shared model and its own."""

from collections.abc import Mapping

import torch

from floral.core.spec import Batch, Cost, Group, Method, Noise, Objective, Problem, Scope, View
from floral.core.streams import Stream
from floral.toolkit.parts import join_from, model_groups, personal_groups, predictor, with_loss


def build(problem: Problem, *, alpha: float) -> Method:
    """w SHARED; v_k and α_k PRIVATE; served is v̄ = α_k·v_k + (1 - α_k)·w, with running statistics of its own.

    On every batch, all gradients at the values before it:

        w ← w - lr·∇f(w),    v ← v - lr·α·∇f(v̄),    α ← clip(α - lr·⟨v - w, ∇f(v̄)⟩, 0, 1)

    w is FedAvg whatever α; α = 0 held there serves FedAvg, α = 1 held there trains v_k as Local. Where accounts of the
    method differ, chosen are: v's gradient with its factor α, and a step of α with every batch, not once a round. A
    client that joins after training begins with v at w.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    mixed = predictor(model, "mixed", "personal_statistics")

    def predict(view, x, noise, mask):
        share, w, v = view["alpha"]["alpha"], view["base"], view["personal"]
        # sorted: α's gradient is a sum over the names, whose order a checkpoint does not keep
        between = {name: share * v[name] + (1 - share) * w[name] for name in sorted(w)}
        return mixed({**view, "mixed": between}, x, noise, mask)

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            **personal_groups(model, stream, problem.lr, problem.clients),
            "alpha": Group(
                scope=Scope.PRIVATE, init=lambda: {"alpha": torch.full((problem.clients,), alpha)}, lr=problem.lr
            ),
        },
        predict=predict,
        noise=model.noise,
        local_step=step,
        cost=Cost(passes_per_sample=2),
        join=join_from(personal="base", personal_statistics="statistics"),
    )


def step(
    objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
) -> tuple[View, View, torch.Tensor]:
    """One step of w on its own loss, which is the mixture's at α = 0, and one of v and α on the mixture's."""
    gradient = torch.func.grad(with_loss(objective), has_aux=True)
    own = {name: trained[name] for name in ("personal", "alpha")}
    alone = {**fixed, "personal": own["personal"], "alpha": {"alpha": torch.zeros_like(own["alpha"]["alpha"])}}
    if "statistics" in fixed:
        alone["personal_statistics"] = fixed["statistics"]
    of_w, (_, shared) = gradient({"base": trained["base"]}, alone, batch, noise)
    of_own, (loss, changed) = gradient(own, {**fixed, "base": trained["base"]}, batch, noise)
    slopes = {**of_w, **of_own}
    moved = {
        group: {name: value - lr[group] * slopes[group][name] for name, value in params.items()}
        for group, params in trained.items()
    }
    moved["alpha"] = {"alpha": moved["alpha"]["alpha"].clamp(0, 1)}
    if shared:
        changed = {**changed, "statistics": shared["personal_statistics"]}
    return moved, changed, loss

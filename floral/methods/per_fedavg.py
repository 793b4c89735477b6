"""Per-FedAvg (arXiv 2002.07948): train a shared model that is good after one gradient step on a client's samples."""

from floral.core.spec import Cost, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.gradients import gradient, gradient_and_loss
from floral.toolkit.inner_steps import halves, moved
from floral.toolkit.parts import model_groups, predictor, sample_losses

DELTA = 1e-3
"""δ, the step of the differences of gradients."""


def build(problem: Problem, *, alpha: float, hessian: str) -> Method:
    """Per-FedAvg: minimise the clients' loss after one gradient step, f_k(w - alpha·∇f_k(w)), by FedAvg.

    Each step takes two disjoint halves D and D' of its batch. With the loss f(w; D) on a half, a client computes

        w̃ = w - alpha·∇f(w; D),    g = ∇f(w̃; D'),    w ← w - lr·(g - alpha·∇²f(w; D)·g)

    `hessian="none"` leaves out the last product (first-order form). `hessian="differences"` computes it from gradients,
    as (∇f(w + δg; D) - ∇f(w - δg; D)) / 2δ (Hessian-free form). w is SHARED. For its predictions, a client makes one
    step w - alpha·∇f_k(w) on all its training samples in evaluation mode, which is thrown away afterwards.

    Limiting case: with alpha = 0 this is FedAvg in which each step uses only the second half of its batch.
    """
    model, differences = problem.build_model(), hessian == "differences"
    plain = predictor(model)

    def step(objective, trained, fixed, batch, noise, lr):
        (first, second), w = halves(batch, noise), trained["base"]
        gradients = gradient_and_loss(objective)

        def gradient_of(w, half, statistics):
            slopes, loss, changed = gradients({"base": w}, {**fixed, **statistics}, *half)
            return slopes["base"], changed, loss

        inner, changed, _ = gradient_of(w, first, {})
        update, changed, loss = gradient_of(moved(w, inner, alpha), second, changed)
        if differences:
            ahead, behind = (gradient_of(moved(w, update, rate), first, {})[0] for rate in (-DELTA, DELTA))
            product = {name: (ahead[name] - behind[name]) / (2 * DELTA) for name in w}
            update = moved(update, product, alpha)
        return {"base": moved(w, update, lr["base"])}, changed, loss

    def adapted(view, samples):
        def loss(w):
            losses = sample_losses(problem.loss, plain({**view, "base": w}, samples.x, None, None)[0], samples.y)
            return (losses * samples.mask).sum() / samples.mask.sum().clamp(min=1)

        return {"base": moved(view["base"], gradient(loss)(view["base"]), alpha)}

    return Method(
        groups=model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=plain,
        local_step=step,
        before_predictions=adapted,
        noise=model.noise,
        cost=Cost(passes_per_sample=2 if differences else 1),
    )

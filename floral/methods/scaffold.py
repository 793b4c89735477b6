"""SCAFFOLD (arXiv 1910.06378): control variates correct the drift of the clients' local steps."""

import torch

from floral.core.spec import Group, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, repeated_start


def build(problem: Problem) -> Method:
    """SCAFFOLD: FedAvg whose local steps are corrected by control variates c_k of the client and c of the server.

    c_k estimates the gradient of client k, and c the gradient of all clients. Each local step of the client's model y
    is y ← y - lr·(∇f(y) + c - c_k). After H steps from the received model x, the new control variate is (option II)

        c_k' = c_k - c + (x - y) / (H·lr),    and the server sets    c ← c + M/K · Σ_k p(k) (c_k' - c_k)

    over the M clients of the round, out of K clients. The model and c are SHARED, and c_k is PRIVATE. All control
    variates start at 0.

    Limiting case: with control variates that stay 0 this is FedAvg.

    Costs: c travels with the model in both directions, so a client sends and receives twice as much as in FedAvg.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    plain, share = predictor(model), problem.cohort / problem.clients
    rate = problem.lr or 1.0  # with `lr` 0 the model does not move, and any divisor gives 0

    def predict(view, x, noise, mask):
        outputs, changed = plain(view, x, noise, mask)
        return outputs, {**changed, "steps": {"count": view["steps"]["count"] + 1}}

    def correction(view, received, noise):
        w, c, c_k = view["base"], view["control"], view["client_control"]
        return torch.stack([((c[name] - c_k[name]) * w[name]).sum() for name in sorted(w)]).sum()

    def new_controls(view, received, samples):
        c, old, steps = view["control"], view["client_control"], view["steps"]["count"].clamp(min=1)
        moved = {name: received["base"][name] - w for name, w in view["base"].items()}
        new = {name: old[name] - c[name] + moved[name] / (steps * rate) for name in old}
        return {"client_control": new, "control": {name: c[name] + share * (new[name] - old[name]) for name in old}}

    def zeros():
        return {name: torch.zeros_like(value) for name, value in model.init(stream).items()}

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            "control": Group(scope=Scope.SHARED, init=zeros, statistic=True),
            "client_control": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(zeros(), problem.clients), statistic=True
            ),
            # FROZEN, so that it is 0 again at the start of each round.
            "steps": Group(scope=Scope.FROZEN, init=lambda: {"count": torch.zeros(())}, statistic=True),
        },
        predict=predict,
        penalty=correction,
        needs_sgd="the control variates follow from the length of a step of SGD",
        after_training=new_controls,
        noise=model.noise,
    )

"""FedALA (arXiv 2212.01197): each client starts its round at a mixture of shared and personal model, entry by entry."""

import torch

from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope, ServerStep
from floral.core.streams import Stream
from floral.toolkit.gradients import gradient
from floral.toolkit.parts import join_from, model_groups, personal_groups, predictor, sample_losses


def build(problem: Problem, *, layers: int, rate: float, steps: int) -> Method:
    """FedALA: each client starts its round at a mixture of the received model and its own last model.

    In the last `layers` layers with parameters, the mixture is v + (w - v) ⊙ W. w is the received model, v is the
    client's own model after its last round, and the weights W, one for each parameter, are between 0 and 1. All other
    layers are those of w. At the start of a round, the client makes `steps` gradient steps on W with its training loss:
    W ← clip(W - rate·g ⊙ (w - v), 0, 1), with the gradient g of the loss at the mixture. Then it trains the mixture as
    its own model and sends it. The server averages the models as in FedAvg.

    w is SHARED. v and W are PRIVATE; W starts at 1. A client predicts with the mixture of the latest w and its v, with
    the W of its last round.

    Limiting case: with rate = 0, all W stay 1, and this is FedAvg.

    Costs: each step on W takes one pass over all training samples of the client.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    start = model.init(stream)
    last = list(dict.fromkeys(name.rpartition(".")[0] for name in start))[-layers:]
    mixed = [name for name in start if name.rpartition(".")[0] in last]
    ones = {name: torch.ones(problem.clients, *start[name].shape) for name in mixed}

    def mixture(view):
        shared, personal, weights = view["base"], view["personal"], view["weights"]
        return {n: personal[n] + (w - personal[n]) * weights[n] if n in weights else w for n, w in shared.items()}

    def assign(view, held):
        def loss(part):
            params = {**view["base"], **part}
            outputs, _ = model(params, view.get("statistics", {}), held.x, None, None)
            return (sample_losses(problem.loss, outputs, held.y) * held.mask).sum() / held.mask.sum().clamp(min=1)

        for _ in range(steps):
            present = mixture(view)
            gradients = gradient(loss)({name: present[name] for name in mixed})
            moved = {
                name: weight - rate * gradients[name] * (view["base"][name] - view["personal"][name])
                for name, weight in view["weights"].items()
            }
            view = {**view, "weights": {name: weight.clamp(0, 1) for name, weight in moved.items()}}
        return {"weights": view["weights"], "personal": mixture(view)}

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            "personal": personal_groups(model, stream, problem.lr, problem.clients)["personal"],
            "weights": Group(scope=Scope.PRIVATE, init=lambda: ones, statistic=True),
        },
        predict=lambda view, x, noise, mask: predictor(model)({**view, "base": mixture(view)}, x, noise, mask),
        assign=assign,
        phases=(Phase(train=("personal",), predict=predictor(model, "personal")),),
        server=ServerStep(upload={"base": lambda view: view["personal"]}),
        noise=model.noise,
        join=join_from(personal="base"),
        cost=Cost(assign_passes_per_sample=steps, floats_served={"base": model.size, "personal": 0}),
    )

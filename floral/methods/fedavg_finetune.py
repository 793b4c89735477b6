"""FedAvg with fine-tuning: most rounds average one model; in the last rounds every client trains its own copy."""

import torch

from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, repeated_start


def build(problem: Problem, *, after: float) -> Method:
    """FedAvg with fine-tuning: first train one shared model, the base, then train a copy of it per client.

    The first rounds train the base, which is SHARED. `after` is their share of all rounds, for example 0.8. In
    the later rounds the base is fixed. Client k trains a PRIVATE difference d_k, which starts at 0, and predicts with
    base + d_k. This is the same as SGD on a copy of the base.

    Limiting case: with after = 1 this is FedAvg.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    predict_base = predictor(model)

    def personal_params(view):
        return {name: value + view["difference"][name] for name, value in view["base"].items()}

    def personal(view, x, noise, mask):
        outputs, _ = predict_base({**view, "base": personal_params(view)}, x, noise, mask)
        return outputs, {}

    def averages(round: int, rounds: int) -> bool:
        return round <= after * rounds

    def zeros():
        return {name: torch.zeros_like(value) for name, value in model.init(stream).items()}

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            "difference": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(zeros(), problem.clients), lr=problem.lr
            ),
        },
        predict=personal,
        phases=(
            Phase(train=("base",), predict=predict_base, when=averages),
            Phase(train=("difference",), when=lambda round, rounds: not averages(round, rounds)),
        ),
        noise=model.noise,
        cost=Cost(floats_served={"difference": 0}),
    )

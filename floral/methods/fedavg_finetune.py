"""FedAvg and fine-tuning: one model is averaged for most of the rounds; then every client trains a copy of its own."""

import torch

from floral.core.spec import Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, repeated_start


def build(problem: Problem, *, after: float) -> Method:
    """Base SHARED, trained in the first `after` of the rounds; then it stays as it is, and client k trains d_k PRIVATE
    from 0 and serves base + d_k, which is SGD on a copy of the base.

    The rounds of fine-tuning come out of the budget: a client that takes part in one makes the task's local epochs.
    One that never does serves the base. Running statistics are the base's. The published configuration fine-tunes after
    0.8 of the rounds; its code never does. `after` = 1 is FedAvg.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    whole_model = predictor(model)

    def own(view):
        return {name: value + view["difference"][name] for name, value in view["base"].items()}

    def personal(view, x, noise, mask):
        outputs, _ = whole_model({**view, "base": own(view)}, x, noise, mask)
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
            Phase(train=("base",), predict=whole_model, when=averages),
            Phase(train=("difference",), when=lambda round, rounds: not averages(round, rounds)),
        ),
        noise=model.noise,
    )

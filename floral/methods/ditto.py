"""Ditto (arXiv 2012.04221): FedAvg, and a personal model per client with a proximal penalty."""

from floral.core.spec import Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import (
    join_from,
    model_groups,
    personal_groups,
    personal_predictor,
    predictor,
    proximal_penalty,
)


def build(problem: Problem, *, lam: float) -> Method:
    """Ditto: train a shared model by FedAvg, and a personal model that stays near it.

    w is SHARED and trained by FedAvg. v_k is PRIVATE, trained on f_k(v) + lam/2·‖v - w_received‖², and served.

    Limiting case: with lam = 0, w is FedAvg and v_k is Local.

    Both models train for the task's epochs, so a client processes twice as many samples as in FedAvg. A client that
    never takes part serves the start.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            **personal_groups(model, stream, problem.lr, problem.clients),
        },
        predict=personal_predictor(model),
        noise=model.noise,
        join=join_from(personal="base", personal_statistics="statistics"),
        phases=(
            Phase(train=("base",), predict=predictor(model)),
            Phase(train=("personal",), penalty=proximal_penalty("personal", lam)),
        ),
    )

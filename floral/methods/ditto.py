"""Ditto (arXiv 2012.04221): FedAvg, and beside it a model of each client's own, held near the one it received."""

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
    """w SHARED, trained as FedAvg does; v_k PRIVATE, trained on f_k(v) + lam/2·‖v - w_received‖². v_k is served.

    lam = 0 is FedAvg for w and Local for v_k. Each of the two is trained for the task's epochs: a client processes
    twice FedAvg's samples. A client that never takes part serves the start.
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

"""Ditto (arXiv 2012.04221): train FedAvg's model, and a personal model per client with a proximal penalty."""

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
    """Ditto: train a shared model w by FedAvg, and a personal model v_k per client that stays near w.

    Client k trains v_k on f_k(v_k) + lam/2·‖v_k - w_received‖² and predicts with v_k. f_k is its training loss, and
    w_received is w at the start of the round. w is SHARED, v_k is PRIVATE.

    Limiting case: with lam = 0, v_k is trained as in Local. w is trained as in FedAvg for any lam.

    Costs: both models train for the task's epochs, so a client processes twice as many samples as in FedAvg.
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

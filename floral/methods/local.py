"""Local training: every client trains its own model and sends nothing."""

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem) -> Method:
    """Local training: each client trains its own model. All parameters are PRIVATE and have the same initial values for
    all clients.

    This is personalisation without any collaboration.
    """
    model = problem.build_model()
    return Method(
        groups=model_groups(model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=problem.clients),
        predict=predictor(model),
        noise=model.noise,
    )

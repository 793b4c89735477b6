"""Local training: every client trains its own model and sends nothing."""

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem) -> Method:
    """Local training: all parameters are PRIVATE with one common start.

    It is the limit of personalisation without collaboration. A client trains in the rounds in which it takes part, as
    in FedAvg, so both have the same client compute. A client that never takes part keeps the start.
    """
    model = problem.build_model()
    return Method(
        groups=model_groups(model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=problem.clients),
        predict=predictor(model),
        noise=model.noise,
    )

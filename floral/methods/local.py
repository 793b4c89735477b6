"""Local training: every client its own model, nothing is sent; the limit of personalisation without collaboration."""

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem) -> Method:
    """All PRIVATE from one common start. A client trains in the rounds in which it takes part, as in FedAvg, so both
    spend the same client compute; a client that is never drawn keeps the start."""
    model = problem.build_model()
    return Method(
        groups=model_groups(model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=problem.clients),
        predict=predictor(model),
        noise=model.noise,
    )

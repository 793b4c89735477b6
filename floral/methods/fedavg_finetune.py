"""FedAvg with fine-tuning: most rounds average one model; in the last rounds every client trains its own copy."""

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.fine_tuning import fine_tuned_method
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem, *, after: float) -> Method:
    """FedAvg with fine-tuning: first train one shared model, the base, then train a copy of it per client.

    The first rounds train the base, which is SHARED. `after` is their share of all rounds, for example 0.8. In
    the later rounds the base is fixed. Client k trains a PRIVATE difference d_k, which starts at 0, and predicts with
    base + d_k. This is the same as SGD on a copy of the base.

    Limiting case: with after = 1 this is FedAvg.
    """
    model = problem.build_model()
    groups = model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr)
    return fine_tuned_method(problem, model, groups, predictor(model), parts=("base",), after=after)

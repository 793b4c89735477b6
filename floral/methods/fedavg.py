"""FedAvg (arXiv 1602.05629): one model for all, averaged with p(k) ∝ n_k."""

from floral.layers import Model
from floral.methods.floral import adaptors_of
from floral.parts import serve, whole
from floral.spec import Method, Problem, Refused, Scope
from floral.streams import Stream

WIDEST = 64.0
"""The search for a width ends here."""


def build(problem: Problem, *, widen: str, rank: float | str) -> Method:
    """All SHARED. `widen="floral"` is a control: the same method with FLoRAL's parameter count |u| + C|a| at `rank`."""
    model = own = problem.build_model()
    if widen == "floral":
        model = widened(problem, own.size + problem.clusters * adaptors_of(problem, rank=rank).size)
    cost, own_cost = (some.multiply_adds(problem.shape, problem.batch) for some in (model, own))
    return Method(
        groups=whole(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=serve(model),
        draws=model.draws,
        passes=cost / own_cost,
    )


def widened(problem: Problem, size: int) -> Model:
    """The narrowest widening of the task's model with at least `size` parameters, found by bisection.

    Raises:
        Refused: the model has no hidden layer, or no width up to 64 suffices.
    """
    low, high = 1.0, WIDEST
    if problem.build_model(width=high).size < size:
        raise Refused(f"no width up to {WIDEST:g} times the model's own reaches {size} parameters")
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if problem.build_model(width=middle).size >= size else (middle, high)
    return problem.build_model(width=high)

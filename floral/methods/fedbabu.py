"""FedBABU (arXiv 2106.06042): clients train only the body of a shared model; at the end each fine-tunes all of it."""

from floral.core.spec import Group, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.fine_tuning import fine_tuned_method
from floral.toolkit.parts import SplitModel, head_name


def build(problem: Problem, *, after: float) -> Method:
    """FedBABU: first train the shared body under a head that never changes, then fine-tune a copy per client.

    The first rounds train the body, which is SHARED. `after` is their share of all rounds, for example 0.8. The head,
    the last linear layer, is FROZEN at its random initial values. In the later rounds body and head are fixed. Client k
    trains a PRIVATE difference d_k of both, which starts at 0, and predicts with their sum. This is the same as SGD on
    a copy of the model.

    Limiting case: with after = 1 this is FedAvg of a model whose head is not trained.

    Raises:
        Refused: the model has no layer before its head.
    """
    model = problem.build_model()
    split = SplitModel(model=model, private_layers=[head_name(model)], name="head")
    groups = split.groups(Stream(problem.seed, "model"), problem.lr, clients=1)
    head = {name: value[0] for name, value in groups["head"].init().items()}
    groups["head"] = Group(scope=Scope.FROZEN, init=lambda: head)
    return fine_tuned_method(problem, model, groups, split.predict, parts=("base", "head"), after=after)

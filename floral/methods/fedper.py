"""FedPer (arXiv 1912.00818): a shared body and a head of each client's own, trained together."""

from floral.core.spec import Method, Problem
from floral.core.streams import Stream
from floral.toolkit.parts import SplitModel, head_name


def build(problem: Problem) -> Method:
    """The last linear layer PRIVATE with one common start, all other layers SHARED, one joint SGD step.

    With a SHARED head it is FedAvg, with a PRIVATE body Local.

    Raises:
        Refused: the model has no layer before its last.
    """
    model = problem.build_model()
    split = SplitModel(model=model, private_layers=[head_name(model)], name="head")
    return Method(
        groups=split.groups(Stream(problem.seed, "model"), problem.lr, problem.clients),
        predict=split.predict,
        noise=model.noise,
    )

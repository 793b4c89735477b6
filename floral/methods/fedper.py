"""FedPer (arXiv 1912.00818): a shared body and a private head per client, trained together."""

from floral.core.spec import Method, Problem
from floral.core.streams import Stream
from floral.toolkit.parts import SplitModel, head_name


def build(problem: Problem) -> Method:
    """FedPer: all layers are SHARED except the last linear layer, the head, which is PRIVATE.

    The heads have one common start. Body and head train in one joint SGD step.

    Limiting cases: with a SHARED head it is FedAvg, with a PRIVATE body Local.

    Raises:
        Refused: the model has no layer before its head.
    """
    model = problem.build_model()
    split = SplitModel(model=model, private_layers=[head_name(model)], name="head")
    return Method(
        groups=split.groups(Stream(problem.seed, "model"), problem.lr, problem.clients),
        predict=split.predict,
        noise=model.noise,
    )

"""FedPer (arXiv 1912.00818): a shared body and a private head per client, which train together."""

from floral.core.spec import Method, Problem
from floral.core.streams import Stream
from floral.toolkit.parts import SplitModel, head_name


def build(problem: Problem) -> Method:
    """FedPer: the last linear layer (the head) is PRIVATE; all other layers (the body) are SHARED.

    All clients' heads have the same initial values. Body and head train together in each step.

    Limiting cases: if the head were SHARED too, this would be FedAvg. If the body were PRIVATE too, it would be Local.

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

"""Private norm (FedBN, arXiv 2102.07623): FedAvg with private normalisation layers."""

from floral.core.spec import Method, Problem, Refused
from floral.core.streams import Stream
from floral.nn.norms import NORMS
from floral.toolkit.parts import SplitModel


def build(problem: Problem) -> Method:
    """FedBN: each client keeps its own normalisation layers; everything else is averaged.

    Scale, shift and running statistics of every normalisation layer are PRIVATE, with the same initial values for all
    clients. All other parameters are SHARED.

    Limiting cases: if the normalisation layers were SHARED too, this would be FedAvg. If all parameters were PRIVATE,
    it would be Local.

    Raises:
        Refused: the model has no normalisation layer, so the method would be FedAvg.
    """
    model = problem.build_model()
    norms = [name for name, layer in model.layers.items() if isinstance(layer, NORMS)]
    if not norms:
        raise Refused(
            "the model has no normalisation layer to keep private; use the variant `fedavg`, or another model"
        )
    split = SplitModel(model=model, private_layers=norms, name="norm")
    return Method(
        groups=split.groups(Stream(problem.seed, "model"), problem.lr, problem.clients),
        predict=split.predict,
        noise=model.noise,
    )

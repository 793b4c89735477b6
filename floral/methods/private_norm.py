"""Private norm (FedBN, arXiv 2102.07623): FedAvg with private normalisation layers."""

from floral.core.spec import Method, Problem, Refused
from floral.core.streams import Stream
from floral.nn.norms import NORMS
from floral.toolkit.parts import SplitModel


def build(problem: Problem) -> Method:
    """FedBN: keep all normalisation layers private, and average everything else.

    Scale, shift and running statistics of every norm layer are PRIVATE with one common start. All other parameters are
    SHARED.

    Limiting cases: with SHARED norm layers it is FedAvg, with all parameters PRIVATE Local.

    Raises:
        Refused: the model has no norm layer, so the method would be FedAvg.
    """
    model = problem.build_model()
    norms = [name for name, layer in model.layers.items() if isinstance(layer, NORMS)]
    if not norms:
        raise Refused("the model has no normalisation layer to keep private; use fedavg or another model")
    split = SplitModel(model=model, private_layers=norms, name="norm")
    return Method(
        groups=split.groups(Stream(problem.seed, "model"), problem.lr, problem.clients),
        predict=split.predict,
        noise=model.noise,
    )

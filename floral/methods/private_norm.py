"""Private norm (FedBN, arXiv 2102.07623): FedAvg but for the normalisation layers, which stay with their clients."""

from floral.core.spec import Method, Problem, Refused
from floral.core.streams import Stream
from floral.nn.norms import NORMS
from floral.toolkit.parts import SplitModel


def build(problem: Problem) -> Method:
    """Scale, shift and running statistics of every norm layer PRIVATE with one common start, all else SHARED.

    With SHARED norm layers it is FedAvg, with everything PRIVATE Local.

    Raises:
        Refused: the model has no norm layer, so that the method would be FedAvg.
    """
    model = problem.build_model()
    norms = [name for name, layer in model.layers.items() if isinstance(layer, NORMS)]
    if not norms:
        raise Refused("the model has no normalisation layer to keep private: it would be FedAvg")
    split = SplitModel(model=model, private_layers=norms, name="norm")
    return Method(
        groups=split.groups(Stream(problem.seed, "model"), problem.lr, problem.clients),
        predict=split.predict,
        noise=model.noise,
    )

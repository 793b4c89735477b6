"""LG-FedAvg (arXiv 2001.01523): own bodies, one shared last layer."""

from floral.core.spec import Method, Problem
from floral.core.streams import Stream
from floral.toolkit.parts import SplitModel, head_name


def build(problem: Problem) -> Method:
    """All layers but the last are PRIVATE. With one client it is FedAvg."""
    model = problem.build_model()  # the model of the task
    body = [name for name in model.layers if name != head_name(model)]
    # PRIVATE parameters stay with their client; the others are SHARED: the server averages them.
    split = SplitModel(model=model, private_layers=body, name="body")
    stream = Stream(problem.seed, "model")  # random numbers of the initial values
    return Method(
        groups=split.groups(stream, problem.lr, problem.clients),
        predict=split.predict,
        noise=model.noise,
    )

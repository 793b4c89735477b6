"""FedAvg (arXiv 1602.05629): train one model for all clients, averaged with weights p(k) ∝ n_k."""

from floral.core.spec import Cost, Method, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import forward_backward_passes, model_groups, model_of_size, predictor


def build(problem: Problem, *, widen: str, rank: float | str) -> Method:
    """FedAvg: all parameters are SHARED.

    `widen="floral"` is a control: FedAvg of a wider model with FLoRAL's number of parameters |u| + C|a| at `rank`.
    """
    model = problem.build_model()
    if widen == "floral":
        size = model.size + problem.clusters * adaptors_of(problem, rank=rank).size
        model = model_of_size(problem, size, low=1.0)
    return Method(
        groups=model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=predictor(model),
        noise=model.noise,
        cost=Cost(passes_per_sample=forward_backward_passes(problem, model)),
    )

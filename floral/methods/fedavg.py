"""FedAvg (arXiv 1602.05629): average one model for all clients, with their numbers of samples as weights."""

from floral.core.spec import Cost, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import forward_backward_passes, model_groups, model_of_size, predictor


def build(problem: Problem, *, widen: str, rank: float | str, train: str) -> Method:
    """FedAvg: average one model over the clients k of each round, with weights p(k) ∝ n_k. All parameters are SHARED.

    n_k is the number of training samples of client k.

    `widen="floral"` gives a method for a fair comparison with FLoRAL: the model is widened until it has at least as
    many parameters as FLoRAL. FLoRAL has |u| + C|a| parameters: |u| in its base, and |a| in each of its C adaptors of
    rank `rank`.

    With `train="all"`, all parameters are trained, also on tasks with a frozen base (full fine-tuning).
    """
    model = problem.build_model(trained=train == "all")
    if widen == "floral":
        from floral.adaptors.attach import adaptors_of  # here, so that runs of plain FedAvg do not depend on adaptors

        size = model.size + problem.clusters * adaptors_of(problem, rank=rank).size
        model = model_of_size(problem, size, low=1.0)
    return Method(
        groups=model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=predictor(model),
        noise=model.noise,
        cost=Cost(passes_per_sample=forward_backward_passes(problem, model)),
    )

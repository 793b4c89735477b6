"""FedProx (arXiv 1812.06127): FedAvg whose clients stay near the model that they received."""

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, proximal_penalty


def build(problem: Problem, *, mu: float) -> Method:
    """All SHARED, with mu/2·‖w - w_received‖² added to the loss.

    mu = 0 is FedAvg; so is any mu where a client takes one step a round, for the first step starts where the penalty
    has no slope. Running statistics are no parameters and are not held back. The paper's grid is 0.001 to 1, code
    published by others takes 0.01 or 1; 0.1 is chosen here.
    """
    model = problem.build_model()
    return Method(
        groups=model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=predictor(model),
        noise=model.noise,
        penalty=proximal_penalty("base", mu),
    )

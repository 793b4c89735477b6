"""FedProx (arXiv 1812.06127): FedAvg with a proximal penalty that keeps clients near the received model."""

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, proximal_penalty


def build(problem: Problem, *, mu: float) -> Method:
    """FedProx: FedAvg with the penalty mu/2·‖w - w_received‖² in the clients' loss; all parameters are SHARED.

    Limiting cases: mu = 0 is FedAvg. So is any mu if a client makes one step per round, because the penalty has no
    gradient at the received model.

    The penalty does not include running statistics. The paper's grid of mu is 0.001 to 1, other published code uses
    0.01 or 1. The default here is 0.1.
    """
    model = problem.build_model()
    return Method(
        groups=model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=predictor(model),
        noise=model.noise,
        penalty=proximal_penalty("base", mu),
    )

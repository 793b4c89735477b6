"""FedProx (arXiv 1812.06127): FedAvg with a proximal penalty that keeps clients near the received model."""

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, proximal_penalty


def build(problem: Problem, *, mu: float) -> Method:
    """FedProx: FedAvg with the penalty mu/2·‖w - w_received‖² in the clients' loss. All parameters are SHARED.

    w is the client's model, and w_received is the model that it received at the start of the round.

    Limiting cases: with mu = 0 this is FedAvg. With one local step per round it is FedAvg for any mu, because the
    gradient of the penalty is zero at w = w_received.
    """
    model = problem.build_model()
    return Method(
        groups=model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=predictor(model),
        noise=model.noise,
        penalty=proximal_penalty("base", mu),
    )

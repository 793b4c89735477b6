"""IFCA (arXiv 2006.04088): each client trains only the one of C models that has the smallest training loss."""

from floral.core.spec import Cost, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, outputs_of_each_model, sample_losses
from floral.toolkit.routes import ModelChoice


def build(problem: Problem) -> Method:
    """IFCA: each client chooses the model with the smallest loss on its training samples, trains this model and sends
    it.

    The models w_c are CLUSTERED, and their initial values differ. The choice c(k) of client k is PRIVATE. It is
    argmin_c Σ_i loss(w_c; x_i, y_i) over all training samples (x_i, y_i) of the client. The client chooses again at the
    start of each of its rounds, with losses in evaluation mode (with running statistics and without dropout).

    Limiting case: with C = 1 this is FedAvg.

    The server averages model c over the clients that chose it, with weights p(k|c) ∝ n_k, the numbers of training
    samples. The authors' code uses the plain mean. A model without clients does not change.

    The authors' code tests a client on the model with the smallest TEST loss, which uses test labels. Here a client
    predicts with the model of its last choice, or with model 0 if it never took part.

    Costs: the choice takes C forward passes per training sample and round.
    """
    model, clusters = problem.build_model(), problem.clusters
    choice, outputs_of = ModelChoice(model=model, clusters=clusters), outputs_of_each_model(model)

    def assign(view, held):
        outputs, _ = outputs_of(view, held.x, None, None)
        losses = sample_losses(problem.loss, outputs, held.y.expand(clusters, *held.y.shape))
        return {"choice": {"cluster": (losses * held.mask).sum(-1).argmin().to(losses.dtype)}}

    models = model_groups(model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=clusters)
    return Method(
        groups={**models, "choice": choice.group(problem.clients)},
        predict=choice.predict,
        assign=assign,
        routing=choice.routing,
        cost=Cost(assign_passes_per_sample=clusters / 3, floats_sent={"choice": (0, 1)}),
        noise=model.noise,
    )

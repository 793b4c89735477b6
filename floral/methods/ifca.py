"""IFCA (arXiv 2006.04088): C models, of which a client picks, trains and sends the one with the least training loss."""

from floral.core.spec import Cost, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, outputs_of_each_model, sample_losses
from floral.toolkit.routes import ModelChoice


def build(problem: Problem) -> Method:
    """Models CLUSTERED with distinct starts; the choice c(k) = argmin_c Σ_i loss(w_c; x_i, y_i) PRIVATE, made anew at
    the start of each of the client's rounds over all its training rows (running statistics, no dropout). C = 1 is
    FedAvg.

    Model c is averaged over the clients that chose it with p(k|c) ∝ n_k, this project's weights (the authors' code
    takes the plain mean); a model that nobody chose keeps its value. The authors' code tests a client on the model of
    its least TEST loss, which looks at test labels; here a client is served the model of its last choice, and one that
    never took part is served model 0. The choice costs C forward passes per training row and round.
    """
    model, clusters = problem.build_model(), problem.clusters
    choice, each = ModelChoice(model=model, clusters=clusters), outputs_of_each_model(model)

    def assign(view, held):
        outputs, _ = each(view, held.x, None, None)
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

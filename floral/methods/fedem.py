"""FedEM (arXiv 2108.10252): fit a mixture of C models to each client's data by expectation maximisation."""

import math

import torch

from floral.core.spec import Cost, Group, Method, Problem, Routing, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, noise_of_each_model, outputs_of_each_model, sample_losses


def build(problem: Problem) -> Method:
    """FedEM: fit a mixture of C models to each client's data by expectation maximisation (EM).

    The models w_c are CLUSTERED, and their initial values differ. The weights π_kc of client k are PRIVATE and equal at
    the start. They are kept as logarithms log π_k [C].

    E-step: at the start of its round, the client computes the responsibilities q_i(c) of each model for each training
    sample (x_i, y_i). Then it computes new weights. All models are in evaluation mode, with running statistics and
    without dropout:

        q_i(c) ∝ π_kc exp(-loss(w_c; x_i, y_i)),    then    π_kc = mean_i q_i(c)

    M-step: the client trains by SGD on Σ_i Σ_c q_i(c)·loss(w_c; x_i, y_i), with q fixed. The server averages all models
    with p(k), not with p(k|c).

    Limiting case: with C = 1 this is FedAvg.

    A client predicts the mixture of probabilities Σ_c π_kc softmax(w_c(x)). The outputs are the logarithms of these
    probabilities, so that the cross-entropy is the mixture's negative log-likelihood. In regression with d outputs, q
    belongs to the Gaussians N(w_c(x), d/2·I). Up to a constant, their negative log-likelihood is the squared error
    averaged over the outputs. The prediction is the mean Σ_c π_kc w_c(x).

    Costs: C forward-backward passes per sample. The E-step adds C forward passes per training sample and round.
    Computing q again is not counted, because a client could keep it.
    """
    model = problem.build_model()
    clusters = problem.clusters
    outputs_of = outputs_of_each_model(model)

    def losses_of(outputs, y):
        """Return the loss of each of the C models on each of B samples [C, B]."""
        return sample_losses(problem.loss, outputs, y.expand(clusters, *y.shape))

    def log_responsibilities(view, batch):
        """Return log q [C, B], the logarithm of the responsibility of each of the C models for each of B samples."""
        outputs, _ = outputs_of(view, batch.x, None, None)
        return torch.log_softmax(view["mixture"]["log_weights"][:, None] - losses_of(outputs, batch.y), 0)

    def assign(view, held):
        log_q = torch.where(held.mask, log_responsibilities(view, held), -math.inf)
        return {"mixture": {"log_weights": torch.log_softmax(torch.logsumexp(log_q, -1), 0)}}

    def weighted_loss(view, received, batch, noise):
        outputs, statistics = outputs_of(view, batch.x, noise, batch.mask)
        q = log_responsibilities(received, batch).detach().exp()
        return (q * losses_of(outputs, batch.y)).sum(0), statistics

    def predict(view, x, noise, mask):
        outputs, statistics = outputs_of(view, x, noise, mask)
        log_weights = view["mixture"]["log_weights"]
        if problem.loss == "mse":
            return torch.tensordot(log_weights.exp(), outputs, 1), statistics
        log_weights = log_weights.reshape(-1, *(1,) * (outputs.dim() - 1))
        return torch.logsumexp(log_weights + torch.log_softmax(outputs, -1), 0), statistics

    def uniform(view):
        return torch.full_like(view["mixture"]["log_weights"], -math.log(clusters))

    weights = torch.full((problem.clients, clusters), -math.log(clusters))
    return Method(
        groups={
            **model_groups(model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=clusters),
            "mixture": Group(scope=Scope.PRIVATE, init=lambda: {"log_weights": weights}, statistic=True),
        },
        predict=predict,
        assign=assign,
        loss=weighted_loss,
        routing=Routing(log_route=uniform, served_log_route=lambda view: view["mixture"]["log_weights"]),
        noise=noise_of_each_model(model, clusters),
        cost=Cost(passes_per_sample=clusters, assign_passes_per_sample=clusters / 3),
    )

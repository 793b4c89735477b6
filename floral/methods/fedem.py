"""FedEM (arXiv 2108.10252): model each client's data as a mixture of C models, with weights from EM."""

import math

import torch

from floral.core.spec import Cost, Group, Method, Problem, Routing, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, noise_of_each_model, outputs_of_each_model, sample_losses


def build(problem: Problem) -> Method:
    """FedEM: fit a mixture of C models to each client's data by expectation maximisation.

    The models are CLUSTERED with distinct starts. log π_k [C] is PRIVATE and starts uniform.

    E-step, at the start of a client's round over all its training samples (running statistics, no dropout):

        q_i(c) ∝ π_kc exp(-loss(w_c; x_i, y_i)),    then    π_kc = mean_i q_i(c)

    M-step: SGD on Σ_i Σ_c q_i(c)·loss(w_c; x_i, y_i) with the q of the E-step. q is recomputed for each batch from the
    received models and the previous π. This gives the stored values, or with augmentation those of the augmented
    samples. All models are averaged with p(k), not with p(k|c).

    Limiting case: C = 1 is FedAvg.

    A client serves the mixture of probabilities Σ_c π_kc softmax(w_c(x)), as log-probabilities, so that the
    cross-entropy is the mixture's negative log-likelihood. In regression q belongs to Gaussians N(w_c(x), d/2·I) for d
    outputs, whose negative log-likelihood is the squared error averaged over the outputs; served is the mean Σ_c π_kc
    w_c(x). A client that never takes part serves the uniform mixture.

    Costs: C passes per sample, and C forward passes per training sample and round for the E-step, whose q a client can
    store.
    """
    model = problem.build_model()
    clusters = problem.clusters
    outputs_of = outputs_of_each_model(model)

    def losses_of(outputs, y):
        """Losses [C, B] of each model on each sample."""
        return sample_losses(problem.loss, outputs, y.expand(clusters, *y.shape))

    def log_responsibilities(view, batch):
        """log q [C, B] of each model for each sample."""
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

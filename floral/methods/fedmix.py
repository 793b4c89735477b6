"""FedMix (arXiv 2107.06724): C shared experts, mixed sample by sample by a gate of each client's own."""

import math

import torch

from floral.core.spec import Cost, Group, Method, Problem, Routing, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import (
    forward_backward_passes,
    model_groups,
    noise_of_each_model,
    outputs_of_each_model,
    sample_losses,
)
from floral.toolkit.routes import Gate, entropy


def build(problem: Problem, *, balance: float) -> Method:
    """Experts CLUSTERED with distinct starts; gate p_k(z|x) PRIVATE; p_k(y|x) = Σ_z p_k(z|x) p(y|x, w_z). C = 1 is
    FedAvg. One local step a round from a constant gate p_k(z|x) = π_kz is FedEM's with these weights, but for the
    server's weights.

    SGD on the mixture's negative log-likelihood, whose gradients are those of the EM bound with the responsibilities
    r_i(z) ∝ p_k(z|x_i) p(y_i|x_i, w_z) of the current values: expert z learns from row i with weight r_i(z), the gate
    learns r_i. Expert z is averaged with p(k|z) ∝ n_k·r̄_kz, where r̄_k is the mean responsibility of the client's
    training rows, by the received experts and its gate as its round begins (running statistics, no dropout). With
    `balance` above 0 the entropy of the mean gate over each batch is rewarded: against collapse to one expert, but also
    against a gate whose client belongs to one expert. Which experts merge depends on the starts and the gate's rate.

    Chosen here, where accounts of the method leave it open: the gate is linear on the flattened inputs (images averaged
    to 8×8), starts even and is trained at the router's rate; responsibilities are renewed with every step; all experts
    are sent, also those of little responsibility; `balance` is 0. Regression as in `fedem`: Gaussians N(w_z(x), d/2·I),
    served is the mean. A client that never takes part is served the even mixture.

    Costs: C passes per sample, and C forward passes per training row and round for r̄_k.
    """
    model, clusters = problem.build_model(), problem.clusters
    each, gate = outputs_of_each_model(model), Gate(problem=problem, experts=clusters)

    def log_joint(view, outputs, batch):
        """log p(z|x) p(y|x, w_z) [C, B], up to a constant"""
        losses = sample_losses(problem.loss, outputs, batch.y.expand(clusters, *batch.y.shape))
        return gate.log_weights(view, batch.x).mT - losses

    def assign(view, held):
        outputs, _ = each(view, held.x, None, None)
        log_r = torch.log_softmax(log_joint(view, outputs, held), 0)
        total = torch.logsumexp(torch.where(held.mask, log_r, -math.inf), -1)
        return {"responsibility": {"log_mean": torch.log_softmax(total, 0)}}

    def mixture_loss(view, received, batch, noise):
        outputs, statistics = each(view, batch.x, noise, batch.mask)
        losses = -torch.logsumexp(log_joint(view, outputs, batch), 0)
        if balance > 0:
            weight = batch.mask.to(losses.dtype)
            mean = weight @ gate.log_weights(view, batch.x).exp() / weight.sum().clamp(min=1)
            losses = losses - balance * entropy(mean)
        return losses, statistics

    def predict(view, x, noise, mask):
        outputs, statistics = each(view, x, noise, mask)
        log_weights = gate.log_weights(view, x).mT.unsqueeze(-1)
        if problem.loss == "mse":
            return (log_weights.exp() * outputs).sum(0), statistics
        return torch.logsumexp(log_weights + torch.log_softmax(outputs, -1), 0), statistics

    even = torch.full((problem.clients, clusters), -math.log(clusters))
    return Method(
        groups={
            **model_groups(model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=clusters),
            **gate.groups,
            "responsibility": Group(scope=Scope.PRIVATE, init=lambda: {"log_mean": even}, statistic=True),
        },
        predict=predict,
        assign=assign,
        loss=mixture_loss,
        routing=Routing(log_route=lambda view: view["responsibility"]["log_mean"]),
        noise=noise_of_each_model(model, clusters),
        cost=Cost(
            passes_per_sample=clusters + forward_backward_passes(problem, gate.model),
            assign_passes_per_sample=clusters / 3,
            floats_sent={"responsibility": (0, clusters)},
        ),
    )

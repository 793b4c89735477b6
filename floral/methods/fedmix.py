"""FedMix (arXiv 2107.06724): mix C shared experts, with weights that a private gate computes for each sample."""

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
    """FedMix: mix C shared experts with weights that a private gate computes for each sample.

    Client k predicts p_k(y|x) = Σ_z p_k(z|x) p(y|x, w_z). p_k(z|x) is the gate's weight of expert z, and w_z are the
    parameters of expert z. The experts are CLUSTERED, and their initial values differ. The gate is PRIVATE.

    The client trains by SGD on the mixture's negative log-likelihood. The gradients are those of the EM bound with the
    responsibilities r_i(z) ∝ p_k(z|x_i) p(y_i|x_i, w_z) of the current values. This means that expert z learns from
    sample i with weight r_i(z), and the gate learns to predict r_i.

    The server averages expert z with weights p(k|z) ∝ n_k·r̄_kz, where n_k is the client's number of training samples
    and r̄_kz the mean responsibility of expert z over them. The client computes r̄_k at the start of its round, from
    the received experts and its gate in evaluation mode (with running statistics and without dropout).

    `balance` > 0 rewards gates whose mean weights over a batch have a large entropy. This prevents a collapse to one
    expert. It also penalises a client that needs only one expert. Which experts merge depends on the starts and on the
    gate's learning rate.

    Limiting cases: with C = 1 this is FedAvg. With one local step per round and a constant gate p_k(z|x) = π_kz, it is
    FedEM with these weights, except for the server's weights.

    Costs: C forward-backward passes per sample, and C forward passes per training sample and round for r̄_k.
    """
    model, clusters = problem.build_model(), problem.clusters
    outputs_of, gate = outputs_of_each_model(model), Gate(problem=problem, experts=clusters)

    def log_joint(view, outputs, batch):
        """Return log p(z|x) + log p(y|x, w_z) [C, B] of each expert z and sample (x, y), up to a constant."""
        losses = sample_losses(problem.loss, outputs, batch.y.expand(clusters, *batch.y.shape))
        return gate.log_weights(view, batch.x).mT - losses

    def assign(view, held):
        outputs, _ = outputs_of(view, held.x, None, None)
        log_r = torch.log_softmax(log_joint(view, outputs, held), 0)
        total = torch.logsumexp(torch.where(held.mask, log_r, -math.inf), -1)
        return {"responsibility": {"log_mean": torch.log_softmax(total, 0)}}

    def mixture_loss(view, received, batch, noise):
        outputs, statistics = outputs_of(view, batch.x, noise, batch.mask)
        losses = -torch.logsumexp(log_joint(view, outputs, batch), 0)
        if balance > 0:
            weight = batch.mask.to(losses.dtype)
            mean = weight @ gate.log_weights(view, batch.x).exp() / weight.sum().clamp(min=1)
            losses = losses - balance * entropy(mean)
        return losses, statistics

    def predict(view, x, noise, mask):
        outputs, statistics = outputs_of(view, x, noise, mask)
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

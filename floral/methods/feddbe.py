"""FedDBE (arXiv 2311.14975): a private vector, added to the features, absorbs the bias of a client's features."""

import torch
from torch import Tensor

from floral.core.spec import AllClients, Group, Method, Phase, Problem, Scope, View
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.parts import body_model, head_name, model_groups, predictor, repeated_start, sample_losses


def build(problem: Problem, *, kappa: float, share: float) -> Method:
    """FedDBE: add a private vector b_k to the features, and pull the mean of the features towards a consensus.

    The features are body(x), the inputs of the last linear layer (the head). Client k predicts with head(body(x) +
    b_k). Body and head are SHARED. b_k is PRIVATE and starts at 0. All of them train together in each step.

    The penalty κ·mean_j ½(m_j - ḡ_j)² over the features j pulls the client's mean features m to the consensus ḡ. m is a
    running mean of the features without b_k. It is 0 at the start of a round, and each batch changes it:
    m ← (1 - share)·m + share·(mean features of the batch).

    The consensus is ḡ = Σ_k p(k) m_k. For it, all clients train body and head for one round before round 1, without b_k
    and without the penalty. m_k is the running mean at the end. The trained models are thrown away, and round 1 starts
    at the initial model. ḡ never changes.

    Limiting case: with κ = 0 and b_k fixed at 0 this is FedAvg.

    Costs: the training before round 1, and sending m_k and ḡ once, are not counted.

    Raises:
        Refused: the model has no body before a last linear layer.
    """
    model, last = problem.build_model(), head_name(problem.build_model())
    below, width = predictor(body_model(model)), problem.build_model().layers[last].inputs

    def on_top(view: View, features: Tensor, bias: Tensor | float) -> Tensor:
        return model.layers[last](layer_params(view["base"], last), features + bias)

    def predict(view, x, noise, mask):
        features, changed = below(view, x, noise, mask)
        return on_top(view, features, view["bias"]["b"]), changed

    def running_mean(view: View, features: Tensor, mask: Tensor) -> Tensor:
        """Return the client's mean features m after a batch with these features."""
        of_samples = features.mean(1) if problem.loss == "token_cross_entropy" else features
        weight = mask.to(features.dtype)
        batch_mean = (of_samples * weight[:, None]).sum(0) / weight.sum().clamp(min=1)
        return (1 - share) * view["seen"]["mean"] + share * batch_mean

    def with_term(view, received, batch, noise):
        del received
        features, changed = below(view, batch.x, noise, batch.mask)
        mean = running_mean(view, features, batch.mask)
        term = kappa * (mean - view["consensus"]["mean"]).square().mean() / 2
        losses = sample_losses(problem.loss, on_top(view, features, view["bias"]["b"]), batch.y) + term
        return losses, {**changed, "seen": {"mean": mean.detach()}}

    def without_term(view, x, noise, mask):
        features, changed = below(view, x, noise, mask)
        mean = running_mean(view, features, mask)
        return on_top(view, features, 0.0), {**changed, "seen": {"mean": mean.detach()}}

    def measure_consensus(everyone: AllClients) -> View:
        phase = Phase(train=("base",), predict=without_term)
        return {"consensus": {"mean": everyone.mean_after(phase, lambda view: view["seen"]["mean"])}}

    def zeros():
        return {"mean": torch.zeros(width)}

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "bias": Group(
                scope=Scope.PRIVATE,
                init=lambda: repeated_start({"b": torch.zeros(width)}, problem.clients),
                lr=problem.lr,
            ),
            "consensus": Group(scope=Scope.FROZEN, init=zeros),
            # FROZEN, so that it is 0 again at the start of each round.
            "seen": Group(scope=Scope.FROZEN, init=zeros, statistic=True),
        },
        predict=predict,
        prepare=measure_consensus,
        loss=with_term,
        noise=model.noise,
    )

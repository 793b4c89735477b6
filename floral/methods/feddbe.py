"""FedDBE (arXiv 2311.14975): a private vector, added to the features, absorbs the bias of a client's features."""

import torch

from floral.core.spec import Cost, Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.parts import body_model, head_name, model_groups, predictor, repeated_start, sample_losses


def build(problem: Problem, *, kappa: float, share: float) -> Method:
    """FedDBE: add a private vector b_k to the features, and pull the mean of the features towards a consensus.

    The features are body(x), the inputs of the last linear layer (the head). Client k predicts with head(body(x) +
    b_k). Body and head are SHARED. b_k is PRIVATE and starts at 0. All of them train together in each step.

    The penalty κ·mean_j ½(m_j - ḡ_j)² over the features j pulls the client's mean features m to the consensus ḡ. ḡ is
    the mean of the clients' features in the first round. m is a running mean of the features without b_k. It is 0 at
    the start of a round, and each batch changes it: m ← (1 - share)·m + share·(mean features of the batch). For text,
    the mean is over all tokens of all samples in the batch.

    Limiting case: with κ = 0 and b_k fixed at 0 this is FedAvg.

    Differences from the paper: the paper computes ḡ in a local training of all clients before the first round. Here the
    clients of round 1 report the means of their features during training, and the loss of round 1 has no additional
    term. The published code has share = 0.1 and κ = 0, which removes the term. The paper tunes κ to about 50.

    Costs: the consensus is counted as sent down in every round, although once would be enough. The single upload of the
    features' means is not counted.

    Raises:
        Refused: the model has no body before a last linear layer.
    """
    model, last = problem.build_model(), head_name(problem.build_model())
    below, width = predictor(body_model(model)), problem.build_model().layers[last].inputs

    def on_top(view: View, features):
        return model.layers[last](layer_params(view["base"], last), features + view["bias"]["b"])

    def predict(view, x, noise, mask):
        features, changed = below(view, x, noise, mask)
        return on_top(view, features), changed

    def with_term(view, received, batch, noise):
        del received
        features, changed = below(view, batch.x, noise, batch.mask)
        weight, seen, consensus = batch.mask.to(features.dtype), view["seen"], view["consensus"]
        of_samples = features.mean(1) if problem.loss == "token_cross_entropy" else features
        total, count = (of_samples * weight[:, None]).sum(0), weight.sum()
        mean = (1 - share) * seen["mean"] + share * total / count.clamp(min=1)
        term = kappa * consensus["known"] * (mean - consensus["mean"]).square().mean() / 2
        sums = {"mean": mean.detach(), "total": seen["total"] + total.detach(), "count": seen["count"] + count}
        return sample_losses(problem.loss, on_top(view, features), batch.y) + term, {**changed, "seen": sums}

    def report(view):
        seen = view["seen"]
        return {"mean": seen["total"] / seen["count"].clamp(min=1), "known": torch.ones_like(seen["count"])}

    def keep_consensus(served: ServerView) -> View:
        return {} if served.round == 1 else {"consensus": served.before["consensus"]}

    def no_features_seen():
        return {"mean": torch.zeros(width), "total": torch.zeros(width), "count": torch.zeros(())}

    unknown = {"mean": torch.zeros(width), "known": torch.zeros(())}
    return Method(
        groups={
            **model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "bias": Group(
                scope=Scope.PRIVATE,
                init=lambda: repeated_start({"b": torch.zeros(width)}, problem.clients),
                lr=problem.lr,
            ),
            "consensus": Group(scope=Scope.SHARED, init=lambda: unknown, statistic=True),
            "seen": Group(scope=Scope.FROZEN, init=no_features_seen, statistic=True),
        },
        predict=predict,
        loss=with_term,
        server=ServerStep(upload={"consensus": report}, update=keep_consensus),
        noise=model.noise,
        cost=Cost(floats_sent={"consensus": (width + 1, 0)}),
    )

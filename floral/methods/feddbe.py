"""FedDBE (arXiv 2311.14975): a vector of each client's own on the features takes up what is its own in their mean."""

import torch

from floral.core.spec import Cost, Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.parts import body_model, head_name, model_groups, predictor, repeated_start, sample_losses


def build(problem: Problem, *, kappa: float, share: float) -> Method:
    """Body and head SHARED, b_k PRIVATE from 0; served is head(body(x) + b_k); all of them train in one joint step.

    The loss has κ·mean_j ½(m_j - ḡ_j)² beside the task's: m = (1 - share)·m + share·(mean features of the batch, of
    text over its tokens too), without b_k and from 0 in every round, and ḡ the consensus, which is found once and
    then stays. The paper finds it by an ordinary local training of all clients before the first round; here the clients
    of round 1, which has no such term, report the means of the features that their training saw. Published code has
    share = 0.1 and κ = 0, which switches the term off; the paper tunes κ, to about 50. Features are those that the last
    linear layer takes. Billed is the consensus down in every round, more than is needed, and not the one report up.

    b_k held at 0 and κ = 0 is FedAvg.

    Raises:
        Refused: the model has no body below a last linear layer.
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
        noted = {"mean": mean.detach(), "total": seen["total"] + total.detach(), "count": seen["count"] + count}
        return sample_losses(problem.loss, on_top(view, features), batch.y) + term, {**changed, "seen": noted}

    def report(view):
        seen = view["seen"]
        return {"mean": seen["total"] / seen["count"].clamp(min=1), "known": torch.ones_like(seen["count"])}

    def keep_consensus(served: ServerView) -> View:
        return {} if served.round == 1 else {"consensus": served.before["consensus"]}

    def nothing_seen():
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
            "seen": Group(scope=Scope.FROZEN, init=nothing_seen, statistic=True),
        },
        predict=predict,
        loss=with_term,
        server=ServerStep(upload={"consensus": report}, update=keep_consensus),
        noise=model.noise,
        cost=Cost(floats_sent={"consensus": (width + 1, 0)}),
    )

"""FedProto (arXiv 2105.00243): clients keep their models, and exchange the mean features of each class."""

import torch

from floral.core.spec import Cost, Group, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.heads import BodyAndHead, labels_and_weights
from floral.toolkit.parts import forward_backward_passes, model_groups, predictor, sample_losses


def build(problem: Problem, *, lam: float) -> Method:
    """FedProto: train a model per client, and pull its features towards those that all clients have for a class.

    z(x) [d] are the features of client k, the inputs of its last linear layer. The prototype P_c of class c is the mean
    of the features of all samples of this class in the last round. A client trains its PRIVATE model on

        loss(x, y) + lam·mean_j (z(x)_j - P_yj)²    for each sample (x, y)

    A class without a prototype has no second term. After training, client k computes the features of its training
    samples in evaluation mode, and sends their sums S_kc and numbers n_kc for each class, both divided by n_k. The
    server averages them with p(k) ∝ n_k, so P_c = Σ_k S_kc / Σ_k n_kc. A client sends nothing else, and predicts with
    its own model.

    Limiting case: with lam = 0 this is Local.

    Raises:
        Refused: the task is a regression, or the model has no body before a last linear layer.
    """
    split, clients = BodyAndHead.of(problem), problem.clients
    width = split.model.layers[split.name].inputs  # type: ignore[reportAttributeAccessIssue]

    def prototypes(view, received, samples):
        features, _ = split.features(view, samples.x, None, None)
        labels, weights = labels_and_weights(samples, features)
        share = weights / weights.sum().clamp(min=1)
        zeros = {name: torch.zeros_like(value) for name, value in view["prototypes"].items()}
        sums = zeros["sum"].index_add(0, labels, share[:, None] * features.flatten(0, -2))
        return {"prototypes": {"sum": sums, "share": zeros["share"].index_add(0, labels, share)}}

    def loss(view, received, batch, noise):
        features, changed = split.features(view, batch.x, noise, batch.mask)
        losses = sample_losses(problem.loss, split.logits(view["base"], features), batch.y)
        share = view["prototypes"]["share"]
        target = (view["prototypes"]["sum"] / share.clamp(min=1e-30)[:, None])[batch.y]
        distance = (share > 0)[batch.y] * (features - target).square().mean(-1)
        return losses + lam * distance.reshape(len(losses), -1).mean(-1), changed

    sums = {"sum": torch.zeros(problem.outputs, width), "share": torch.zeros(problem.outputs)}
    return Method(
        groups={
            **model_groups(split.model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=clients),
            "prototypes": Group(scope=Scope.SHARED, init=lambda: sums, statistic=True),
        },
        predict=predictor(split.model),
        loss=loss,
        after_training=prototypes,
        noise=split.model.noise,
        cost=Cost(assign_passes_per_sample=forward_backward_passes(problem, split.body) / 3),
    )

"""FedRoD (arXiv 2107.00778): a shared model with a balanced loss, and a private head on its features."""

import torch

from floral.core.spec import Cost, Group, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.heads import BodyAndHead, labels_and_weights
from floral.toolkit.parts import forward_backward_passes, model_groups, repeated_start, sample_losses


def build(problem: Problem) -> Method:
    """FedRoD: train a shared model for balanced classes, and a private head for the classes of each client.

    The shared head g and the private head h_k, both the last linear layer, read the features z of the shared body. A
    client predicts with the sum of both logits, g(z) + h_k(z). A step has two losses:

    - Body and g train on the balanced cross-entropy, that of the logits g(z)_c + log n_kc. n_kc is the number of
      training samples (for text, of tokens) of class c on client k. A class without samples is left out.
    - h_k trains on the cross-entropy of g(z) + h_k(z), with g(z) and z fixed. It is PRIVATE and starts at 0.

    Limiting cases: without h_k this is FedAvg with the balanced loss. If a client has equally many samples of all
    classes, the balanced loss is the cross-entropy.

    Raises:
        Refused: the task is a regression, or the model has no body before a last linear layer.
    """
    split, stream, clients = BodyAndHead.of(problem), Stream(problem.seed, "model"), problem.clients
    zeros = {name: torch.zeros_like(value) for name, value in split.of_head(split.model.init(stream)).items()}

    def count_labels(view, samples):
        counts = torch.zeros_like(view["labels"]["count"])
        return {"labels": {"count": counts.scatter_add(0, *labels_and_weights(samples, counts))}}

    def loss(view, received, batch, noise):
        features, changed = split.features(view, batch.x, noise, batch.mask)
        shared = split.logits(view["base"], features)
        log_counts = view["labels"]["count"].clamp(min=1e-30).log()  # the logarithm of 0 is not finite
        balanced = sample_losses(problem.loss, shared + log_counts, batch.y)
        personal = shared.detach() + split.logits(view["head"], features.detach())
        return balanced + sample_losses(problem.loss, personal, batch.y), changed

    def predict(view, x, noise, mask):
        features, changed = split.features(view, x, noise, mask)
        return split.logits(view["base"], features) + split.logits(view["head"], features), changed

    labels = torch.ones(clients, problem.outputs)
    return Method(
        groups={
            **model_groups(split.model, Scope.SHARED, stream, problem.lr),
            "head": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(zeros, clients), lr=problem.lr),
            "labels": Group(scope=Scope.PRIVATE, init=lambda: {"count": labels}, statistic=True),
        },
        predict=predict,
        assign=count_labels,
        loss=loss,
        noise=split.model.noise,
        cost=Cost(passes_per_sample=2 - forward_backward_passes(problem, split.body)),
    )

"""kNN-Per (arXiv 2111.09360): mix FedAvg's predictions with those of the nearest stored features of the client."""

import torch

from floral.core.spec import Method, Phase, Problem, Refused, Scope
from floral.core.streams import Stream
from floral.toolkit.heads import BodyAndHead
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem, *, lam: float, neighbours: int) -> Method:
    """kNN-Per: train FedAvg's model, and let the nearest training samples of the client vote on each prediction.

    z(x) [d] are the features, the inputs of the last linear layer. At an evaluation, a client computes the features of
    all its training samples. Those of the K = `neighbours` nearest samples i vote for their labels, with weights
    q_i(x) ∝ exp(-‖z(x) - z(x_i)‖²/d) that sum to 1. With the probabilities p(x) of FedAvg's model, a client predicts

        lam·Σ_i q_i(x)·[y_i = c] + (1 - lam)·p_c(x)    for each class c

    The outputs are the logarithms of these probabilities. A client without samples predicts with p(x).

    Limiting case: with lam = 0, clients predict with FedAvg's model. The model is trained as in FedAvg for any lam.

    Raises:
        Refused: the task is a regression or has text, or the model has no body before a last linear layer.
    """
    if problem.loss == "token_cross_entropy":
        raise Refused(
            "the method stores one feature vector per sample, but text has one per token; choose another task"
        )
    split = BodyAndHead.of(problem)

    def store(view, samples):
        features, _ = split.features(view, samples.x, None, None)
        return {"stored": {"features": features, "labels": samples.y, "mask": samples.mask}}

    def predict(view, x, noise, mask):
        features, changed = split.features(view, x, noise, mask)
        log_p, stored = torch.log_softmax(split.logits(view["base"], features), -1), view["stored"]
        keys, present = stored["features"], stored["mask"]
        squared = features.square().sum(-1, keepdim=True) + keys.square().sum(-1) - 2 * features @ keys.mT
        similarity = torch.where(present, -squared.clamp(min=0) / keys.shape[-1], -1e30)
        nearest, index = similarity.topk(min(neighbours, len(keys)), -1)
        is_label = stored["labels"][index][..., None] == torch.arange(problem.outputs, device=x.device)
        votes = (torch.softmax(nearest, -1)[..., None] * is_label).sum(-2)
        share = lam * present.any().to(votes.dtype)
        return torch.logaddexp((share * votes).log(), log_p + torch.log1p(-share)), changed

    return Method(
        groups=model_groups(split.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        predict=predict,
        phases=(Phase(train=("base",), predict=predictor(split.model)),),
        before_predictions=store,
        noise=split.model.noise,
    )

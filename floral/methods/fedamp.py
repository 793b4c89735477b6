"""FedAMP (arXiv 2007.03797): the server sends each client a mean of all models, in which similar models weigh more."""

import torch
from torch import Tensor

from floral.core.spec import Cost, Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, proximal_penalty
from floral.toolkit.routes import cluster_vectors, params_of_vectors


def build(problem: Problem, *, attention: float, similarity: str, sigma: float, lam: float) -> Method:
    """FedAMP: client k trains a model w_k of its own, with a penalty that pulls it to a weighted mean u_k of all.

    The server computes u_k = (1 - Σ_j ξ_kj) w_k + Σ_j ξ_kj w_j over all other clients j that have taken part so far. N
    is their number. The weights ξ_kj depend on the similarity of the models:

    - similarity="distance" (FedAMP): ξ_kj = attention/N · exp(-‖w_k - w_j‖²/sigma).
    - similarity="cosine" (HeurFedAMP): ξ_kj = attention · softmax_j(sigma·cos(w_k, w_j)).

    In its next round, the client trains w_k on f_k(w) + lam/2·‖w - u_k‖², from its last w_k. f_k is its training loss.
    w_k and u_k are PRIVATE, and the w_k have the same initial values. No model is averaged. A client predicts with w_k.

    Limiting case: with lam = 0 this is Local.

    The u_k of a client is computed at the end of its round, with the last models of all others.

    Costs: a client sends w_k and receives u_k. The penalty is not counted.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    models = model_groups(model, Scope.PRIVATE, stream, problem.lr, holders=problem.clients)

    def weights_of_others(models_of_round: Tensor, all_models: Tensor, is_other: Tensor) -> Tensor:
        """Return the weights ξ [M, K] of all clients for the M models of the round [M, d]."""
        products, squares = models_of_round @ all_models.mT, all_models.square().sum(1)
        if similarity == "cosine":
            cosine = products / (models_of_round.norm(dim=1, keepdim=True) * squares.sqrt()).clamp(min=1e-30)
            scores = torch.where(is_other, sigma * cosine, -torch.inf)
            return attention * torch.where(is_other, torch.softmax(scores, 1), 0.0)  # without others, softmax is NaN
        distances = (models_of_round.square().sum(1, keepdim=True) - 2 * products + squares).clamp(min=0)
        number = is_other.to(distances.dtype).sum(1, keepdim=True).clamp(min=1)
        return attention / number * torch.exp(-distances / sigma) * is_other

    def attend(served: ServerView) -> View:
        assert served.client_vectors is not None
        at, trained = served.client_vectors.clients, served.client_vectors.vectors
        memory, cloud = served.before["memory"], served.before["cloud"]
        memory["model"][at], memory["present"][at] = trained, 1
        is_other = (memory["present"] > 0) & (at[:, None] != torch.arange(problem.clients, device=at.device))
        weights = weights_of_others(trained, memory["model"], is_other)
        means = (1 - weights.sum(1, keepdim=True)) * trained + weights @ memory["model"]
        for name, value in params_of_vectors(means, cloud).items():
            cloud[name][at] = value
        return {}

    def memory():
        """Return what the server keeps: the last model of each client [K, d], and whether it has taken part [K]."""
        return {"model": cluster_vectors(models["base"].init()).clone(), "present": torch.zeros(problem.clients)}

    return Method(
        groups={
            **models,
            "cloud": Group(scope=Scope.PRIVATE, init=models["base"].init, statistic=True),
            "memory": Group(scope=Scope.FROZEN, init=memory, statistic=True),
        },
        predict=predictor(model),
        penalty=proximal_penalty("base", lam, towards="cloud"),
        server=ServerStep(
            client_vector=lambda view: torch.cat([view["base"][name].flatten() for name in sorted(view["base"])]),
            update=attend,
        ),
        noise=model.noise,
        cost=Cost(floats_sent={"cloud": (model.size, 0), "base": (0, model.size)}),
    )

"""IFCA (arXiv 2006.04088): each client trains only the one of C models that has the smallest training loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from floral.core.spec import AllClients, Cost, Group, Method, Noise, Params, Predict, Problem, Scope, View
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.parts import (
    body_model,
    distinct_starts,
    forward_backward_passes,
    head_name,
    model_groups,
    outputs_of_each_model,
    predictor,
    sample_losses,
)
from floral.toolkit.routes import ModelChoice

LEAST_SHARE = {1: 0.0, 2: 0.35, 4: 0.1}
"""Number of models C → least share of the clients that must choose each model of the start, in the authors' code."""
DRAWS = 100
"""Maximum number of drawn starts."""


def build(problem: Problem, *, shared_body: bool) -> Method:
    """IFCA: each client chooses the model with the smallest loss on its training samples, trains this model and sends
    it.

    The models w_c are CLUSTERED, and their initial values differ. The choice c(k) of client k is PRIVATE. It is
    argmin_c Σ_i loss(w_c; x_i, y_i) over all training samples (x_i, y_i) of the client. The client chooses again at the
    start of each of its rounds, with losses in evaluation mode (with running statistics and without dropout).

    With `shared_body`, only the heads (the last linear layers) are CLUSTERED. The body, which is the rest of the model,
    is SHARED and averaged over all clients of the round.

    The start: before round 1, all clients choose one of C random models. If too few clients choose a model, C new
    models are drawn (with `shared_body` only new heads), at most `DRAWS` times. If no start is good enough, the one
    counts in which the least chosen model has the most clients.

    Limiting case: with C = 1 this is FedAvg.

    The server averages model c over the clients that chose it, with weights p(k|c) ∝ n_k, the numbers of training
    samples. A model without clients does not change. A client predicts with the model of its last choice.

    Costs: the choice takes C forward passes per training sample and round, with `shared_body` of the heads only. The
    choices before round 1 are not counted.

    Raises:
        Refused: with `shared_body`, the model has no body before a last linear layer.
    """
    models = models_of_clusters(problem, shared_body)
    model, clusters = models.choice.model, problem.clusters

    def assign(view, held):
        losses = sample_losses(problem.loss, models.outputs(view, held.x), held.y.expand(clusters, *held.y.shape))
        return {"choice": {"cluster": (losses * held.mask).sum(-1).argmin().to(losses.dtype)}}

    def draw_start(everyone: AllClients) -> View:
        """Return the first start in which every model is chosen by enough clients, or the best of all drawn starts."""
        best, most = {}, -1
        for draw in range(DRAWS):
            start = {models.clustered: distinct_starts(models.draw, models.stream, clusters, draw * clusters)}
            choices = everyone.assigned(start)["choice"]["cluster"].long()
            fewest = int(torch.bincount(choices, minlength=clusters).min())
            if fewest > most:
                best, most = start, fewest
            if fewest >= LEAST_SHARE.get(clusters, 0.4 / clusters) * len(choices):
                break
        return best

    return Method(
        groups={**models.groups, "choice": models.choice.group(problem.clients)},
        predict=models.predict,
        assign=assign,
        prepare=draw_start,
        routing=models.choice.routing,
        cost=Cost(assign_passes_per_sample=models.passes / 3, floats_sent={"choice": (0, 1)}),
        noise=model.noise,
    )


@dataclass(frozen=True, kw_only=True)
class ClusterModels:
    """The C models from which a client chooses: their groups of parameters, how they are drawn and how they predict."""

    choice: ModelChoice
    groups: Mapping[str, Group]
    clustered: str
    """Name of the group that the clusters do not share."""
    stream: Stream
    draw: Callable[[Stream], Params]
    """Draws the parameters of one cluster."""
    outputs: Callable[[View, Tensor], Tensor]
    """(view, x [B, ...]) → outputs [C, B, outputs] of all models, in evaluation mode."""
    predict: Predict
    """Predicts with the chosen model."""
    passes: float
    """Cost of all outputs, in passes of the task's model."""


def models_of_clusters(problem: Problem, shared_body: bool) -> ClusterModels:
    """Return C separate models, or C heads on one body."""
    model, clusters, stream = problem.build_model(), problem.clusters, Stream(problem.seed, "model")
    choice = ModelChoice(model=model, clusters=clusters)
    if not shared_body:
        outputs_of = outputs_of_each_model(model)
        return ClusterModels(
            choice=choice,
            groups=model_groups(model, Scope.CLUSTERED, stream, problem.lr, holders=clusters),
            clustered="base",
            stream=stream,
            draw=model.init,
            outputs=lambda view, x: outputs_of(view, x, None, None)[0],
            predict=choice.predict,
            passes=clusters,
        )
    last, body = head_name(model), body_model(model)
    features_of, model_group = predictor(body), model_groups(model, Scope.SHARED, stream, problem.lr)

    def part(params: Params, is_head: bool) -> Params:
        return {name: value for name, value in params.items() if (name.rsplit(".", 1)[0] == last) == is_head}

    def outputs(view: View, x: Tensor) -> Tensor:
        features, _ = features_of(view, x, None, None)
        return torch.vmap(model.layers[last], in_dims=(0, None))(layer_params(view["heads"], last), features)

    def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        chosen_model = {**view["base"], **choice.chosen_params(view, "heads")}
        return predictor(model)({**view, "base": chosen_model}, x, noise, mask)

    def draw(stream: Stream) -> Params:
        return part(model.init(stream), True)

    of_body = forward_backward_passes(problem, body)
    return ClusterModels(
        choice=choice,
        groups={
            **model_group,
            "base": Group(scope=Scope.SHARED, init=lambda: part(model.init(stream), False), lr=problem.lr),
            "heads": Group(scope=Scope.CLUSTERED, init=lambda: distinct_starts(draw, stream, clusters), lr=problem.lr),
        },
        clustered="heads",
        stream=stream,
        draw=draw,
        outputs=outputs,
        predict=predict,
        passes=of_body + clusters * (1 - of_body),
    )

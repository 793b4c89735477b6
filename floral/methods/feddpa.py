"""FedDPA (arXiv 2403.19211): a shared and a private adaptor, whose weights depend on how familiar a sample is."""

from dataclasses import replace
from typing import Any

import torch

from floral.adaptors.attach import adaptors_of
from floral.adaptors.norm import NormAdaptor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.parts import (
    body_model,
    fedavg_phase,
    head_name,
    model_groups,
    phases_with_warmup,
    repeated_start,
    require_separate_samples,
)


def build(problem: Problem, *, base: str, warmup: float, weight: float, **adaptor: Any) -> Method:
    """FedDPA: client k mixes a shared low-rank adaptor B A and a private one B_k A_k, with weights for each sample.

    Client k computes W + (1 - λ(x)) B A + λ(x) B_k A_k. The weight of the private adaptor is λ(x) = weight·mean_i
    cos(f_k(x), f_k(x_i)) over the training samples x_i of the client. f_k(x) are the features: the inputs of the head
    in the model W + B_k A_k, averaged over the tokens of a text. The mean over i is the product of f_k(x)/‖f_k(x)‖ and
    a vector r_k, the mean of f_k(x_i)/‖f_k(x_i)‖, so a client keeps r_k only.

    A round has two phases. First the private adaptor is trained in the model W + (B A + B_k A_k)/2, with the received B
    A fixed. Then the shared adaptor is trained in the model W + B A. The server averages A and B separately, as in
    FedIT. W and B A are SHARED. B_k A_k and r_k are PRIVATE. r_k is computed at the start of each of the client's
    rounds.

    Limiting case: with weight = 0, clients predict as in FedIT.

    The options `base` and `warmup` are as in `fedit`. With base="joint", the base trains in the second phase.

    Raises:
        Refused: the model has no head, no adaptor below it, or an adapted layer does not have the samples of a batch in
            their order.
    """
    adaptors, stream = adaptors_of(problem, **adaptor), Stream(problem.seed, "adaptors")
    require_separate_samples(adaptors.model, adaptors.by_layer, "leave this layer out of `adapt`")
    head = head_name(adaptors.model)
    below = replace(adaptors.without(head), model=body_model(adaptors.model))
    unit = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def features(view, x):
        private = {name: value[None] for name, value in view["private"].items()}
        outputs, _ = below(view["base"], private, unit, view.get("statistics", {}), x, None, None)
        outputs = outputs.flatten(1, -2).mean(1) if outputs.dim() > 2 else outputs
        return outputs / outputs.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def predict(view, x, noise, mask):
        share = weight * (features(view, x) @ view["reference"]["direction"])

        def adapt(name, x):
            part = adaptors.by_layer.get(name)
            if part is None or isinstance(part, NormAdaptor):
                return None, None
            z = adaptors.dropped(name, x, noise)
            shared, private = (
                part.unmerged({key: value[None] for key, value in layer_params(view[group], name).items()}, unit, z)
                for group in ("shared", "private")
            )
            return None, shared + adaptors.model.weighted(name, share, private - shared)

        logits, statistics = adaptors.model(view["base"], view.get("statistics", {}), x, noise, mask, adapt)
        return logits, {"statistics": statistics} if statistics else {}

    def halves(view, x, noise, mask):
        mixture = {name: torch.stack([value, view["private"][name]]) for name, value in view["shared"].items()}
        route = torch.full((2,), 0.5, dtype=problem.dtype, device=problem.device)
        logits, _ = adaptors(view["base"], mixture, route, view.get("statistics", {}), x, noise, mask)
        return logits, {}

    def assign(view, held):
        directions = features(view, held.x) * held.mask[:, None]
        return {"reference": {"direction": directions.sum(0) / held.mask.sum().clamp(min=1)}}

    start = adaptors.init(stream)
    model_start = adaptors.model.init(Stream(problem.seed, "model"))
    zero = torch.zeros(problem.clients, model_start[f"{head}.weight"].shape[1])
    passes = [adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=clusters) for clusters in (1, 2)]
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "shared": Group(scope=Scope.SHARED, init=lambda: start, lr=problem.lr),
            "private": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(start, problem.clients), lr=problem.lr),
            "reference": Group(scope=Scope.PRIVATE, init=lambda: {"direction": zero}, statistic=True),
        },
        predict=predict,
        assign=assign,
        phases=phases_with_warmup(
            Phase(train=("private",), predict=halves),
            Phase(train=("base", "shared"), predict=adaptors.predictor(("shared",))),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=sum(passes) / 2, assign_passes_per_sample=1 / 3),
    )

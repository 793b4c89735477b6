"""PerAda (arXiv 2302.06637) without distillation: shared low-rank adaptors, and private ones pulled towards them."""

from dataclasses import replace
from typing import Any

import torch

from floral.adaptors.attach import adaptors_of
from floral.core.spec import Cost, Group, Method, Params, Phase, Predict, Problem, Refused, Scope, View
from floral.core.streams import Stream
from floral.nn.model import Model
from floral.nn.norms import NORMS
from floral.toolkit.parts import (
    fedavg_phase,
    head_name,
    join_from,
    model_groups,
    phases_with_warmup,
    proximal_penalty,
    repeated_start,
)


def build(problem: Problem, *, lam: float, base: str, warmup: float, **adaptor: Any) -> Method:
    """PerAda: train a shared adaptor w, and a private adaptor v_k per client with a penalty that pulls it towards w.

    w and v_k contain low-rank adaptors of the layers below the head, and the changes of the head (the last linear
    layer) and of the norm layers relative to the base. w is SHARED, v_k is PRIVATE, and w and all v_k have the same
    initial values. The changes start at zero. A client predicts with v_k.

    A round has two phases, each for the task's epochs, in the order of the paper's code. First v_k trains on the
    client's loss plus λ‖v_k - w‖² (without the factor 1/2), while the received w and base are fixed. Then w trains on
    the client's loss alone. If the base is not frozen, its layers below the head train together with w. Its head and
    norm layers keep their initial values, because w has their changes: otherwise each step would count twice.

    Limiting cases: base and w are trained without v_k, for any λ. With λ = 0, v_k trains independently of w.

    The options `base` and `warmup` are as in `fedit`. The running statistics of the base and w are averaged; v_k has
    PRIVATE ones.
    """
    adaptors, stream = adaptors_of(problem, **adaptor), Stream(problem.seed, "adaptors")
    model = adaptors.model
    without_adaptor = head_and_norms(model)
    adaptors = adaptors.without(*without_adaptor)

    def is_change(name: str) -> bool:
        """Return whether a parameter belongs to the head or a norm layer, whose changes are trained directly."""
        return name.rsplit(".", 1)[0] in without_adaptor

    def start() -> Params:
        in_base = model.init(Stream(problem.seed, "model"))
        changes = {name: torch.zeros_like(t) for name, t in in_base.items() if is_change(name)}
        return {**adaptors.init(stream), **changes}

    def predictor_of(group: str) -> Predict:
        with_adaptor = adaptors.predictor((group,))

        def predict(view: View, x, noise, mask):
            base_params = {**view["base"], **view.get("untrained", {})}
            base_params = {name: t + view[group][name] if is_change(name) else t for name, t in base_params.items()}
            return with_adaptor({**view, "base": base_params}, x, noise, mask)

        return predict

    shared, private = predictor_of("shared"), predictor_of("private")
    running = repeated_start(model.statistics(), problem.clients)

    def personal(view, x, noise, mask):
        if not running:
            return private(view, x, noise, mask)
        before, averaged = view["private_statistics"], view["statistics"]
        present = {name: torch.where(before["started"] > 0, before[name], t) for name, t in averaged.items()}
        logits, changed = private({**view, "statistics": present}, x, noise, mask)
        return logits, {"private_statistics": {**changed["statistics"], "started": before["started"].clamp(min=1)}}

    own_statistics = Group(
        scope=Scope.PRIVATE, init=lambda: {**running, "started": torch.zeros(problem.clients)}, statistic=True
    )

    groups = model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr)
    if base == "joint":
        start_of_base = groups["base"].init()
        untrained = {name: t for name, t in start_of_base.items() if is_change(name)}
        trained = {name: t for name, t in start_of_base.items() if name not in untrained}
        groups["base"] = replace(groups["base"], init=lambda: trained)
        groups["untrained"] = Group(scope=Scope.FROZEN, init=lambda: untrained)
    return Method(
        groups={
            **groups,
            "shared": Group(scope=Scope.SHARED, init=start, lr=problem.lr),
            "private": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(start(), problem.clients), lr=problem.lr),
            **({"private_statistics": own_statistics} if running else {}),
        },
        predict=personal,
        phases=phases_with_warmup(
            Phase(train=("private",), penalty=proximal_penalty("private", 2 * lam, towards="shared")),
            Phase(train=("base", "shared"), predict=shared),
            warmup_phase=fedavg_phase(model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
        join=join_from(private="shared"),
    )


def head_and_norms(model: Model) -> set[str]:
    """Return the names of the layers that are trained as a whole, not by an adaptor: the head and the norm layers."""
    norms = {name for name, layer in model.layers.items() if isinstance(layer, NORMS)}
    try:
        return {head_name(model), *norms}
    except Refused:  # the model is its last linear layer alone, or this layer belongs to the embedding
        return norms

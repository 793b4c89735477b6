"""pFedLoRA (arXiv 2310.13283) with equal models: personal models, taught by a small shared adapter."""

import torch

from floral.adaptors.linear import LinearAdaptor
from floral.core.spec import Group, Method, Phase, Problem, Refused, Scope
from floral.core.streams import Stream
from floral.nn.layers import Linear
from floral.toolkit.parts import (
    fedavg_phase,
    head_name,
    model_groups,
    phases_with_warmup,
    repeated_start,
    sample_losses,
)


def build(problem: Problem, *, mu: float, rank: float | str, base: str, warmup: float) -> Method:
    """pFedLoRA: train personal models together with a small shared adapter on their features.

    The personal model F_k is PRIVATE and served. The adapter θ is SHARED: a low-rank copy of the classifier on F_k's
    features z, θ(z) = B A z + b.

    A round has two phases of the task's epochs each. First F_k trains on μ·loss(θ(z)) + (1 - μ)·loss(head_k(z)) with
    the received θ fixed. Then θ trains on loss(θ(z)) with F_k fixed, and is averaged with p(k).

    Limiting case: for μ → 0, F_k is Local with W as its start.

    The paper's clients have different models. Here all have the task's model, F_k = W + Δ_k with a common W: random
    with base="joint", where W is never trained, or the result of FedAvg over the share `warmup` of the rounds. A and B
    start as FLoRAL's, so that θ(z) = b at first. The adapter has its own bias.

    Costs: each phase counts as one pass. In the first, both losses share the features; the second needs less than a
    pass.

    Raises:
        Refused: the model has no body before its classifier, or it has running statistics and a warm-up.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    classifier = head_name(model)
    layer = model.layers[classifier]
    assert isinstance(layer, Linear)
    adapter = LinearAdaptor.of(layer, rank, "zero")
    running = model.statistics()
    if running and base != "joint":
        raise Refused("the running statistics of the warm-up do not fit the clients' personal models; set base: joint")
    shared = model_groups(model, Scope.SHARED if base != "joint" else Scope.FROZEN, stream, problem.lr)
    zero = {name: torch.zeros_like(t) for name, t in shared["base"].init().items()}
    full_weight = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def both_outputs(view, x, noise, mask):
        """Outputs of the model and of the adapter on its features, and the changed statistics."""
        adapter_outputs = []

        def adapt(name, z):
            if name == classifier:
                adapter_outputs.append(
                    adapter.unmerged({key: t[None] for key, t in view["adapter"].items()}, full_weight, z)
                )
            return None, None

        params = {name: t + view["personal"][name] for name, t in view["base"].items()}
        outputs, statistics = model(params, view.get("statistics", {}), x, noise, mask, adapt)
        return outputs, adapter_outputs[0], {"statistics": statistics} if statistics else {}

    def predict(view, x, noise, mask):
        outputs, _, changed = both_outputs(view, x, noise, mask)
        return outputs, changed

    def by_adapter(view, x, noise, mask):
        _, outputs, _ = both_outputs(view, x, noise, mask)
        return outputs, {}

    def mixed(view, received, batch, noise):
        outputs, by_theta, changed = both_outputs(view, batch.x, noise, batch.mask)
        losses = [sample_losses(problem.loss, logits, batch.y) for logits in (by_theta, outputs)]
        return mu * losses[0] + (1 - mu) * losses[1], changed

    start = adapter.init(Stream(problem.seed, "adaptors").of(classifier))
    groups = {
        "base": shared["base"],
        "personal": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(zero, problem.clients), lr=problem.lr),
        "adapter": Group(scope=Scope.SHARED, init=lambda: start, lr=problem.lr),
    }
    if running:
        groups["statistics"] = Group(
            scope=Scope.PRIVATE, init=lambda: repeated_start(running, problem.clients), statistic=True
        )
    return Method(
        groups=groups,
        predict=predict,
        loss=mixed,
        phases=phases_with_warmup(
            Phase(train=("personal",)),
            Phase(train=("adapter",), predict=by_adapter),
            warmup_phase=fedavg_phase(model),
            base=base,
            warmup=warmup,
        ),
        noise=model.noise,
    )

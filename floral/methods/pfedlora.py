"""pFedLoRA (arXiv 2310.13283) for clients with equal models: train personal models and a small shared adapter."""

import torch

from floral.adaptors.linear import LinearAdaptor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Refused, Scope
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
    """pFedLoRA: train a personal model F_k per client, together with a small shared adapter θ on the features of F_k.

    The adapter is a second classifier of low rank, θ(z) = B A z + b. It reads the features z of F_k, which are the
    inputs of its own classifier head_k. F_k is PRIVATE, and the client predicts with it. θ is SHARED.

    A round has two phases, each for the task's epochs. First F_k trains on μ·loss(θ(z)) + (1 - μ)·loss(head_k(z)),
    while the received θ is fixed. Then θ trains on loss(θ(z)), while F_k is fixed. The server averages θ with p(k).

    Limiting case: for μ → 0, F_k is trained as in Local with W as its start.

    F_k = W + Δ_k, with a common W and a PRIVATE Δ_k. With base="joint", W is random and never trained. With a warm-up,
    W is the result of FedAvg over the share `warmup` of the rounds.

    Costs: each phase counts as one forward-backward pass. In the first phase, both losses share the features. The
    second phase needs less than a pass.

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
        raise Refused(
            "the model has running statistics, and those of the warm-up would not fit the clients' personal models;"
            " set `base: joint`"
        )
    shared = model_groups(model, Scope.SHARED if base != "joint" else Scope.FROZEN, stream, problem.lr)
    zero = {name: torch.zeros_like(t) for name, t in shared["base"].init().items()}
    full_weight = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def both_outputs(view, x, noise, mask):
        """Return the outputs of the personal model, the outputs of the adapter on the same features, and the new
        running statistics.
        """
        adapter_outputs = []

        def adapt(name, z):
            if name == classifier:
                adapter_outputs.append(
                    adapter.unmerged({key: t[None] for key, t in view["adapter"].items()}, full_weight, z)
                )
            return None, None

        outputs, changed = predict(view, x, noise, mask, adapt)
        return outputs, adapter_outputs[0], changed

    def predict(view, x, noise, mask, adapt=lambda name, z: (None, None)):
        params = {name: t + view["personal"][name] for name, t in view["base"].items()}
        outputs, statistics = model(params, view.get("statistics", {}), x, noise, mask, adapt)
        return outputs, {"statistics": statistics} if statistics else {}

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
        cost=Cost(floats_served={"personal": 0}),
    )

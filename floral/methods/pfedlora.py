"""pFedLoRA (arXiv 2310.13283) among equal models: models of the clients' own, taught by a small shared adapter."""

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
    """Own model F_k PRIVATE; an adapter θ, a low-rank copy of the classifier on F_k's features z, SHARED.

    A round has two phases of the task's epochs each: F_k on μ·loss(θ(z)) + (1 - μ)·loss(head_k(z)) with θ as received,
    then θ on loss(θ(z)) with F_k held; θ(z) = B A z + b is averaged with p(k). F_k alone is served.

    The paper's clients have different models; here all have the task's, F_k = W + Δ_k with a start W common to all:
    random with base="joint", where W is never trained, or the result of FedAvg over the share `warmup` of the rounds.
    Chosen here: A and B start as FLoRAL's, so that θ(z) = b at first; the adapter's bias is its own.

    Without the adapter (μ towards 0) F_k is Local, with W as its start. The first phase is billed as one pass, for both
    paths share the features, the second one too, though it needs less.

    Raises:
        Refused: the model has no body before its classifier, or running statistics together with a warm-up.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    classifier = head_name(model)
    layer = model.layers[classifier]
    assert isinstance(layer, Linear)
    adapter = LinearAdaptor.of(layer, rank, "zero")
    running = model.statistics()
    if running and base != "joint":
        raise Refused("running statistics of the warm-up would not be those of the clients' own models; use joint")
    shared = model_groups(model, Scope.SHARED if base != "joint" else Scope.FROZEN, stream, problem.lr)
    zero = {name: torch.zeros_like(t) for name, t in shared["base"].init().items()}
    one = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def both(view, x, noise, mask):
        """Outputs of the model and of the adapter on its features, and the changed statistics."""
        taught = []

        def adapt(name, z):
            if name == classifier:
                taught.append(adapter.unmerged({key: t[None] for key, t in view["adapter"].items()}, one, z))
            return None, None

        params = {name: t + view["personal"][name] for name, t in view["base"].items()}
        outputs, statistics = model(params, view.get("statistics", {}), x, noise, mask, adapt)
        return outputs, taught[0], {"statistics": statistics} if statistics else {}

    def predict(view, x, noise, mask):
        outputs, _, changed = both(view, x, noise, mask)
        return outputs, changed

    def by_adapter(view, x, noise, mask):
        _, outputs, _ = both(view, x, noise, mask)
        return outputs, {}

    def mixed(view, received, batch, noise):
        mine, taught, changed = both(view, batch.x, noise, batch.mask)
        losses = [sample_losses(problem.loss, outputs, batch.y) for outputs in (taught, mine)]
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

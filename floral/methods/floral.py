"""FLoRAL (arXiv 2410.03497): one shared base, C low-rank adaptors, a router per client that mixes them."""

from typing import Any

import torch
from torch import Tensor

from floral import parts
from floral.adaptors.attach import Adaptors, attach
from floral.parts import Router, distinct, whole
from floral.spec import Group, Method, Problem, Scope
from floral.streams import Stream


def build(problem: Problem, *, router: str, temperature: float, noise: float, entropy: float, **adaptor: Any) -> Method:
    """Base SHARED, adaptors CLUSTERED, router PRIVATE, mixed inside the layers: W + Σ_c π_kc B_c A_c.

    Adaptors frozen at zero are FedAvg; one client per cluster with a fixed route is Local Adaptor. With a fixed route a
    client needs one adaptor alone, unless the official floor mixes in the others.
    """
    adaptors = adaptors_of(problem, **adaptor)
    mixer = Router(kind=router, problem=problem, temperature=temperature, noise=noise)
    floor = problem.switches["mixture_floor"]
    if mixer.kind != "learned" and floor == 0:
        return own_adaptor(problem, adaptors, mixer.fixed)
    model = adaptors.model
    sign = 1.0 if problem.switches["entropy_sign"] == "minimise" else -1.0

    def predict(view, x, draws, mask):
        mixture = mixer.forward(view, draws)
        mixture = mixture.clamp(min=floor) if floor > 0 else mixture
        base, running = view["base"], view.get("statistics", {})
        logits, statistics = adaptors(base, view["adaptors"], mixture, running, x, draws, mask)
        return logits, {"statistics": statistics} if statistics else {}

    def entropy_term(view, received, draws):
        del received
        return sign * entropy * parts.entropy(mixer.forward(view, draws))

    return Method(
        groups={
            **whole(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "adaptors": clustered(problem, adaptors),
            **mixer.groups,
        },
        predict=predict,
        precondition={"adaptors": adaptors.precondition} if problem.switches["preconditioner"] else {},
        penalty=entropy_term if entropy > 0 else None,
        log_route=mixer.log_route,
        draws={**model.draws, **mixer.draws},
        sends=mixer.sends,
        passes=adaptors.passes(problem.shape, problem.batch, problem.clusters),
    )


def own_adaptor(problem: Problem, adaptors: Adaptors, member: Tensor) -> Method:
    """FLoRAL whose clients hold, train and send the adaptor of their given cluster `member` [K] alone."""
    model = adaptors.model
    alone = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def as_mixture(params):
        return {name: value[None] for name, value in params.items()}

    def predict(view, x, draws, mask):
        running = view.get("statistics", {})
        logits, statistics = adaptors(view["base"], as_mixture(view["adaptors"]), alone, running, x, draws, mask)
        return logits, {"statistics": statistics} if statistics else {}

    def precondition(gradients, params):
        changed = adaptors.precondition(as_mixture(gradients), as_mixture(params))
        return {name: value[0] for name, value in changed.items()}

    return Method(
        groups={
            **whole(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "adaptors": clustered(problem, adaptors),
        },
        predict=predict,
        precondition={"adaptors": precondition} if problem.switches["preconditioner"] else {},
        member=member,
        draws=model.draws,
        passes=adaptors.passes(problem.shape, problem.batch, clusters=1),
    )


def clustered(problem: Problem, adaptors: Adaptors) -> Group:
    """C adaptors with distinct starts, under the run's server rate."""
    return Group(
        scope=Scope.CLUSTERED,
        init=lambda: distinct(adaptors.init, Stream(problem.seed, "adaptors"), problem.clusters),
        lr=problem.lr,
        server_lr=problem.lr if problem.switches["adaptor_server_lr"] == "client" else None,
    )


def adaptors_of(
    problem: Problem,
    *,
    rank: float | str,
    bias: bool = True,
    convolution: str = "balanced_2d",
    application: str = "cheaper",
) -> Adaptors:
    """The task's model with an adaptor on every layer, under the run's fidelity switches."""
    return attach(
        problem.build_model(),
        rank=rank,
        bias=problem.switches["bias_init"] if bias else None,
        convolution=convolution,
        conv_rank=problem.switches["conv_rank"],
        application=application,
    )

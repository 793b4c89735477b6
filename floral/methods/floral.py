"""FLoRAL (arXiv 2410.03497): one shared base, C low-rank adaptors, a router per client that mixes them."""

from typing import Any

import torch
from torch import Tensor

from floral import parts
from floral.adaptors.attach import Adaptors, attach
from floral.adaptors.clustered import Clustered
from floral.parts import Router, whole
from floral.spec import Method, Problem, Scope
from floral.streams import Stream


def build(
    problem: Problem,
    *,
    router: str,
    temperature: float,
    noise: float,
    entropy: float,
    aggregation: str,
    **adaptor: Any,
) -> Method:
    """Base SHARED, adaptors CLUSTERED, router PRIVATE, mixed inside the layers: W + Σ_c π_kc B_c A_c.

    Adaptors frozen at zero are FedAvg; one client per cluster with a fixed route is Local Adaptor. With a fixed route a
    client needs one adaptor alone, unless the official floor mixes in the others. How the server averages the factors
    of a cluster is `aggregation` (`Clustered`); with one client per cluster and round all but "ffa" and "rolora" serve
    alike after it.
    """
    adaptors = adaptors_of(problem, **adaptor)
    mixer = Router(kind=router, problem=problem, temperature=temperature, noise=noise)
    floor = problem.switches["mixture_floor"]
    if mixer.kind != "learned" and floor == 0:
        return own_adaptor(problem, adaptors, aggregation, mixer.fixed)
    clustered = Clustered(problem=problem, adaptors=adaptors, aggregation=aggregation)
    model = adaptors.model
    sign = 1.0 if problem.switches["entropy_sign"] == "minimise" else -1.0

    def predict(view, x, draws, mask):
        mixture = mixer.forward(view, draws)
        mixture = mixture.clamp(min=floor) if floor > 0 else mixture
        base, running = clustered.base(view, mixture), view.get("statistics", {})
        logits, statistics = adaptors(base, clustered.mixture(view), mixture, running, x, draws, mask)
        return logits, {"statistics": statistics} if statistics else {}

    def entropy_term(view, received, draws):
        del received
        return sign * entropy * parts.entropy(mixer.forward(view, draws))

    return Method(
        groups={
            **whole(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            **clustered.groups,
            **mixer.groups,
        },
        predict=predict,
        precondition=clustered.precondition if problem.switches["preconditioner"] else {},
        beside=clustered.beside,
        phases=clustered.phases("base", *(name for name, group in mixer.groups.items() if group.trained)),
        penalty=entropy_term if entropy > 0 else None,
        log_route=mixer.log_route,
        single=(lambda view: clustered.single(view, mixer.log_route(view))) if clustered.exact else None,
        server=clustered.server if clustered.exact else None,
        draws={**model.draws, **mixer.draws},
        sends=mixer.sends,
        passes=adaptors.passes(problem.shape, problem.batch, problem.clusters),
    )


def own_adaptor(problem: Problem, adaptors: Adaptors, aggregation: str, member: Tensor) -> Method:
    """FLoRAL whose clients hold, train and send the adaptor of their given cluster `member` [K] alone."""
    clustered = Clustered(problem=problem, adaptors=adaptors, aggregation=aggregation, member=member)
    model = adaptors.model
    alone = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def predict(view, x, draws, mask):
        base, running = clustered.base(view, alone), view.get("statistics", {})
        logits, statistics = adaptors(base, clustered.mixture(view), alone, running, x, draws, mask)
        return logits, {"statistics": statistics} if statistics else {}

    return Method(
        groups={**whole(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr), **clustered.groups},
        predict=predict,
        precondition=clustered.precondition if problem.switches["preconditioner"] else {},
        beside=clustered.beside,
        phases=clustered.phases("base"),
        single=(lambda view: clustered.single(view, None)) if clustered.exact else None,
        server=clustered.server if clustered.exact else None,
        member=member,
        draws=model.draws,
        passes=adaptors.passes(problem.shape, problem.batch, clusters=1),
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

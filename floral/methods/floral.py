"""FLoRAL (arXiv 2410.03497): one shared base, C low-rank adaptors, a router per client that mixes them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from floral.adaptors.aggregation import require_no_groups
from floral.adaptors.attach import Adaptors, attach
from floral.adaptors.clustered import ClusteredAdaptors
from floral.core.spec import Cost, Group, Method, Phase, Problem, Refused, Routing, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit import routes
from floral.toolkit.parts import model_groups, repeated_start, sample_losses
from floral.toolkit.routes import Router


def build(
    problem: Problem,
    *,
    router: str,
    temperature: float,
    noise: float,
    entropy: float,
    aggregation: str,
    top: int,
    per_layer: bool,
    multiplier: int,
    centred: bool,
    personal: bool,
    server_lr: float | str,
    norm: str,
    **adaptor: Any,
) -> Method:
    """Base SHARED, adaptors CLUSTERED, router PRIVATE, mixed inside the layers: W + Σ_c π_kc B_c A_c.

    Adaptors frozen at zero are FedAvg; one client per cluster with a fixed route is Local Adaptor. With a fixed route a
    client needs one adaptor alone, unless the official floor mixes in the others. Routers: `routes.Router`; one that
    looks at losses costs C forward passes per training row and round, each with one adaptor.

    How the server averages the factors of a cluster is `aggregation` (`ClusteredAdaptors`); with one client per cluster and
    round all but "ffa" and "rolora" serve alike after it. `multiplier` m gives m·C adaptors, for a number of clusters
    that nobody knows. `centred`: `server_centres`. `personal`: `with_private`. `server_lr`, where it is a number, is
    the server's step on the adaptors. `norm`: `Adaptors.with_norms`.

    Raises:
        Refused: an option that the router or the aggregation does not have, or adaptors that no client would be given.
    """
    if router != "learned" and entropy > 0:
        raise Refused(f"entropy is for router: learned, not {router}")
    if router == "optimal" and multiplier > 1:
        raise Refused(
            "router: optimal names one of the true clusters: the adaptors of a multiplier would have no client"
        )
    if aggregation != "average" and (centred or personal):
        raise Refused(f"centred and personal are for aggregation: average, not {aggregation}")
    adds = {"centred: true": centred, "personal: true": personal, "aggregation: stacking": aggregation == "stacking"}
    if norm == "plain" and (asked := [key for key, value in adds.items() if value]):
        raise Refused(
            f"{asked[0]} adds adaptors to the base, which has not the running statistics of plain ones; set norm: "
            "reparameterised"
        )
    problem = replace(problem, clusters=multiplier * problem.clusters)
    adaptors = adaptors_of(problem, **adaptor).with_norms(norm)
    layers = len(adaptors.by_layer) if per_layer else 0
    mixer = Router(kind=router, problem=problem, temperature=temperature, noise_scale=noise, top=top, layers=layers)
    own = mixer.is_fixed and problem.switches["mixture_floor"] == 0
    clustered = ClusteredAdaptors(
        problem=problem,
        adaptors=adaptors,
        aggregation=aggregation,
        member=mixer.fixed_clusters if own else None,
        sent_clusters=mixer.weighed_clusters if mixer.top else None,
        server_lr=None if isinstance(server_lr, str) else server_lr,
    )
    method = own_adaptor(clustered) if own else routed(clustered, mixer, entropy)
    if centred:
        require_no_groups(adaptors)
        method = replace(method, server=ServerStep(update=server_centres(adaptors)))
    return with_private(problem, adaptors, method) if personal else method


def routed(clustered: ClusteredAdaptors, mixer: Router, entropy: float) -> Method:
    """FLoRAL whose clients see all C adaptors, mixed by a router; with an argmin router each uses and sends its choice
    alone, unless the official floor mixes in the others."""
    problem, adaptors = clustered.problem, clustered.adaptors
    model, floor, clusters = adaptors.model, problem.switches["mixture_floor"], problem.clusters
    sign = 1.0 if problem.switches["entropy_sign"] == "minimise" else -1.0
    chooses = mixer.kind == "argmin" and floor == 0
    one, all_clusters = (adaptors.forward_backward_passes(problem.shape, problem.batch, c) for c in (1, clusters))

    def apply(view, route, x, noise, mask, *, only=None):
        """Outputs under a route; `only` the cluster [1] that has all of it."""
        mixture, own, base = clustered.mixture(view), clustered.running(view), clustered.base(view, route)
        if only is not None:
            mixture, own = ({name: t.index_select(0, only) for name, t in some.items()} for some in (mixture, own))
            route = torch.ones_like(route[:1])
        logits, statistics = adaptors(base, mixture, route, view.get("statistics", {}), x, noise, mask, own)
        return logits, clustered.changed(view, statistics)

    def predict(view, x, noise, mask):
        route = mixer.mixing_route(view, noise)
        only = route.argmax().reshape(1) if chooses else None
        return apply(view, route.clamp(min=floor) if floor > 0 else route, x, noise, mask, only=only)

    def assign(view, held):
        certain = torch.eye(clusters, dtype=held.x.dtype, device=held.x.device)
        at = torch.arange(clusters, device=held.x.device)
        outputs = [apply(view, certain[c], held.x, None, None, only=at[c : c + 1])[0] for c in range(clusters)]
        losses = sample_losses(problem.loss, torch.stack(outputs), held.y.expand(clusters, *held.y.shape))
        return mixer.route_from_losses(view, losses, held.mask)

    def entropy_term(view, received, noise):
        del received
        return sign * entropy * routes.entropy(mixer.full_route(view, noise)).mean()

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            **clustered.groups,
            **mixer.groups,
        },
        predict=predict,
        assign=assign if mixer.uses_losses else None,
        precondition=clustered.precondition if problem.switches["preconditioner"] else {},
        preconditioner_inputs=clustered.preconditioner_inputs,
        phases=clustered.phases("base", *(name for name, group in mixer.groups.items() if group.trained)),
        penalty=entropy_term if entropy > 0 else None,
        routing=replace(mixer.routing, serves_one_cluster=chooses),
        server=clustered.server_step(mixer.log_route),
        noise={**model.noise, **mixer.noise},
        cost=Cost(
            passes_per_sample=one if chooses else all_clusters,
            assign_passes_per_sample=clusters * one / 3 if mixer.uses_losses else 0.0,
            floats_sent=mixer.floats_sent,
        ),
    )


def own_adaptor(clustered: ClusteredAdaptors) -> Method:
    """FLoRAL whose clients hold, train and send the adaptor of their given cluster alone."""
    problem, adaptors = clustered.problem, clustered.adaptors
    model, alone = adaptors.model, torch.ones(1, dtype=problem.dtype, device=problem.device)

    def predict(view, x, noise, mask):
        base, running = clustered.base(view, alone), view.get("statistics", {})
        logits, statistics = adaptors(
            base, clustered.mixture(view), alone, running, x, noise, mask, clustered.running(view)
        )
        return logits, clustered.changed(view, statistics)

    return Method(
        groups={**model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr), **clustered.groups},
        predict=predict,
        precondition=clustered.precondition if problem.switches["preconditioner"] else {},
        preconditioner_inputs=clustered.preconditioner_inputs,
        phases=clustered.phases("base"),
        routing=Routing(cluster_of_client=clustered.member, clusters=problem.clusters),
        server=clustered.server_step(None),
        noise=model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )


def server_centres(adaptors: Adaptors) -> Callable[[ServerView], View]:
    """After each round the adaptors' mean product (1/C) Σ_c B_c A_c moves into the base: `Adaptors.centred`.

    The published code has it for linear layers, but does not call it.
    """

    def server(served: ServerView) -> View:
        if "adaptors" not in served.after:
            return {}
        base, mixture = adaptors.centred(served.after.get("base", served.before["base"]), served.after["adaptors"])
        return {"base": base, "adaptors": mixture}

    return server


def with_private(problem: Problem, adaptors: Adaptors, method: Method) -> Method:
    """FLoRAL whose client adds a PRIVATE adaptor of its own: W + Σ_c π_kc B_c A_c + B_k A_k, for the same local budget.

    The paper's "personalised client" gives half of the local epochs to the private and half to the public parts; its
    published code cannot run. Here, so that one local epoch can be halved too, they take turns by rounds: in odd rounds
    clients train the private adaptor beside all they received and send no update, in even rounds the base, the
    adaptors and the router beside the private one. The private A starts apart from the others, alike in all clients.

    Without its odd rounds it is FLoRAL.
    """
    alone = torch.ones(1, dtype=problem.dtype, device=problem.device)
    predict, assign = method.predict, method.assign
    (public,) = method.phases or (Phase(train=method.trained),)
    routes = method.cost.floats_sent

    def start():
        one = adaptors.init(Stream(problem.seed, "private adaptor"))
        return repeated_start({name: value[None] for name, value in one.items()}, problem.clients)

    def added(view):
        own = adaptors.products(view["private"], alone)
        return {**view, "base": {name: t + own[name] if name in own else t for name, t in view["base"].items()}}

    condition = {"private": adaptors.precondition} if problem.switches["preconditioner"] else {}
    merged = replace(adaptors, application="merged")
    with_one = merged.forward_backward_passes(problem.shape, problem.batch, clusters=1)
    return replace(
        method,
        groups={**method.groups, "private": Group(scope=Scope.PRIVATE, init=start, lr=problem.lr)},
        predict=lambda view, x, noise, mask: predict(added(view), x, noise, mask),
        assign=None if assign is None else lambda view, held: assign(added(view), held),
        phases=(
            Phase(train=("private",), when=lambda round, rounds: round % 2 == 1),
            replace(public, when=lambda round, rounds: round % 2 == 0, floats_sent={**routes, **public.floats_sent}),
        ),
        precondition={**method.precondition, **condition},
        cost=replace(method.cost, passes_per_sample=method.cost.passes_per_sample + with_one - 1, floats_sent={}),
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

"""FLoRAL (arXiv 2410.03497): one shared base, C low-rank adaptors, and a router per client that mixes them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from floral.adaptors.aggregation import require_no_groups
from floral.adaptors.attach import Adaptors, adaptors_of, joined
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
    """FLoRAL: every layer of client k adds a mixture of C shared low-rank adaptors to the base: W + Σ_c π_kc B_c A_c.

    The client's router gives the weights π_kc. The base W is SHARED, the adaptors B_c A_c are CLUSTERED, and the router
    is PRIVATE.

    Limiting cases: with the adaptors frozen at zero this is FedAvg. With one client per cluster, where each client uses
    only the adaptor of its cluster, it is Local Adaptor.

    Options:

    - `router`: the kind of router, see `routes.Router`. With a fixed route a client needs only one adaptor, unless the
      setting `mixture_floor` gives all others a small weight, as in the published code. A router that uses losses costs
      C forward passes per training sample and round, each with one adaptor.
    - `aggregation`: how the server averages the factors of a cluster, see `ClusteredAdaptors`. With one client per
      cluster and round, all kinds except "ffa" and "rolora" give the same model.
    - `multiplier` m: train m·C adaptors, for tasks whose number of clusters is unknown.
    - `centred`: see `server_centres`. `personal`: see `with_private`. `norm`: see `Adaptors.with_norms`.
    - `server_lr`: if it is a number, the server's learning rate of the adaptors.

    Raises:
        Refused: an option does not fit the router, the aggregation or `norm`, or an adaptor would have no client.
    """
    if router != "learned" and entropy > 0:
        raise Refused(f"`entropy` needs `router: learned`, but the router is {router}; set `entropy: 0`")
    if router == "optimal" and multiplier > 1:
        raise Refused(
            "`router: optimal` selects the adaptor of the client's true cluster, so the additional"
            " adaptors that `multiplier` creates would have no client; set `multiplier: 1`"
        )
    if aggregation != "average" and (centred or personal):
        raise Refused(
            f"`centred: true` and `personal: true` need `aggregation: average`, but the aggregation is {aggregation};"
            " set both to false"
        )
    adds = {"centred: true": centred, "personal: true": personal, "aggregation: stacking": aggregation == "stacking"}
    if personal and adaptor.get("dropout", 0) > 0:
        raise Refused(
            "`personal: true` merges the private adaptor into the weights, where its input cannot have dropout; set "
            "`dropout: 0`"
        )
    if norm == "plain" and (conflicts := [key for key, value in adds.items() if value]):
        raise Refused(
            f"`{conflicts[0]}` adds adaptors to the base, but the base cannot hold the running statistics"
            " that adaptors have with `norm: plain`; set `norm: reparameterised`"
        )
    problem = replace(problem, clusters=multiplier * problem.clusters)
    adaptors = adaptors_of(problem, **adaptor).with_norms(norm)
    layers = len(adaptors.by_layer) if per_layer else 0
    mixer = Router(kind=router, problem=problem, temperature=temperature, noise_scale=noise, top=top, layers=layers)
    holds_one = mixer.is_fixed and problem.switches["mixture_floor"] == 0
    clustered = ClusteredAdaptors(
        problem=problem,
        adaptors=adaptors,
        aggregation=aggregation,
        member=mixer.fixed_clusters if holds_one else None,
        sent_clusters=mixer.weighed_clusters if mixer.top else None,
        server_lr=None if isinstance(server_lr, str) else server_lr,
    )
    method = own_adaptor(clustered) if holds_one else routed(clustered, mixer, entropy)
    if centred:
        adaptors.require_trained_base()
        require_no_groups(adaptors)
        method = replace(method, server=ServerStep(update=server_centres(adaptors)))
    return with_private(problem, adaptors, method) if personal else method


def routed(clustered: ClusteredAdaptors, mixer: Router, entropy: float) -> Method:
    """Build FLoRAL for clients that receive all C adaptors and mix them with a router.

    With an "argmin" router, a client chooses the adaptor with the smallest loss, and uses and sends only this adaptor.
    The setting `mixture_floor` can imitate the published code: if it is positive, all other adaptors get this small
    weight, and all are used and sent.
    """
    problem, adaptors = clustered.problem, clustered.adaptors
    model, floor, clusters = adaptors.model, problem.switches["mixture_floor"], problem.clusters
    sign = 1.0 if problem.switches["entropy_sign"] == "minimise" else -1.0
    chooses = mixer.kind == "argmin" and floor == 0
    one_adaptor, all_adaptors = (
        adaptors.forward_backward_passes(problem.shape, problem.batch, c) for c in (1, clusters)
    )

    def apply(view, route, x, noise, mask, *, only=None):
        """Return the outputs of the model with the adaptors mixed by the weights `route`, and the new running
        statistics.

        If one cluster has weight 1 and all others have weight 0, `only` [1] may hold the index of that cluster. Then
        only the adaptor of this cluster is computed.
        """
        mixture, running, base = clustered.mixture(view), clustered.running(view), clustered.base(view, route)
        if only is not None:
            mixture, running = (
                {name: t.index_select(0, only) for name, t in params.items()} for params in (mixture, running)
            )
            route = torch.ones_like(route[:1])
        logits, statistics = adaptors(base, mixture, route, view.get("statistics", {}), x, noise, mask, running)
        return logits, clustered.changed(view, statistics)

    def mixing_route(view, noise):
        route = mixer.mixing_route(view, noise)
        return route.clamp(min=floor) if floor > 0 else route

    def predict(view, x, noise, mask):
        route = mixing_route(view, noise)
        return apply(view, route, x, noise, mask, only=route.argmax().reshape(1) if chooses else None)

    def adapted(view):
        route = mixing_route(view, None)
        if chooses:
            route = torch.eye(clusters, dtype=route.dtype)[route.argmax()]
        return clustered.base(view, route), adaptors.one_adaptor(clustered.mixture(view), route)

    def assign(view, held):
        routes_to_one = torch.eye(clusters, dtype=held.x.dtype, device=held.x.device)
        indices = torch.arange(clusters, device=held.x.device)
        outputs = [
            apply(view, routes_to_one[c], held.x, None, None, only=indices[c : c + 1])[0] for c in range(clusters)
        ]
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
        adapted=adapted,
        assign=assign if mixer.uses_losses else None,
        precondition=clustered.precondition if problem.switches["preconditioner"] else {},
        preconditioner_inputs=clustered.preconditioner_inputs,
        phases=clustered.phases("base", *(name for name, group in mixer.groups.items() if group.trained)),
        penalty=entropy_term if entropy > 0 else None,
        routing=replace(mixer.routing, serves_one_cluster=chooses),
        server=clustered.server_step(mixer.log_route),
        noise={**adaptors.noise, **mixer.noise},
        cost=Cost(
            passes_per_sample=one_adaptor if chooses else all_adaptors,
            assign_passes_per_sample=clusters * one_adaptor / 3 if mixer.uses_losses else 0.0,
            floats_sent=mixer.floats_sent,
        ),
    )


def own_adaptor(clustered: ClusteredAdaptors) -> Method:
    """Build FLoRAL for clients that never change their cluster.

    A client holds, trains and sends only the adaptor of its cluster.
    """
    problem, adaptors = clustered.problem, clustered.adaptors
    model, full_weight = adaptors.model, torch.ones(1, dtype=problem.dtype, device=problem.device)

    def predict(view, x, noise, mask):
        base, running = clustered.base(view, full_weight), view.get("statistics", {})
        logits, statistics = adaptors(
            base, clustered.mixture(view), full_weight, running, x, noise, mask, clustered.running(view)
        )
        return logits, clustered.changed(view, statistics)

    return Method(
        groups={**model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr), **clustered.groups},
        predict=predict,
        adapted=lambda view: (
            clustered.base(view, full_weight),
            adaptors.one_adaptor(clustered.mixture(view), full_weight),
        ),
        precondition=clustered.precondition if problem.switches["preconditioner"] else {},
        preconditioner_inputs=clustered.preconditioner_inputs,
        phases=clustered.phases("base"),
        routing=Routing(cluster_of_client=clustered.member, clusters=problem.clusters),
        server=clustered.server_step(None),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )


def server_centres(adaptors: Adaptors) -> Callable[[ServerView], View]:
    """Return the server's step after each round: move the mean product of the adaptors into the base model.

    The mean product is (1/C) Σ_c B_c A_c over the C adaptors (see `Adaptors.centred`).
    """

    def server(served: ServerView) -> View:
        if "adaptors" not in served.after:
            return {}
        base, mixture = adaptors.centred(served.after.get("base", served.before["base"]), served.after["adaptors"])
        return {"base": base, "adaptors": mixture}

    return server


def with_private(problem: Problem, adaptors: Adaptors, method: Method) -> Method:
    """Add a PRIVATE adaptor B_k A_k to each client of FLoRAL: W + Σ_c π_kc B_c A_c + B_k A_k.

    The rounds alternate, so a client trains as much per round as before. Odd rounds train the private adaptor and send
    no update; all received parameters are fixed. Even rounds train the base W, the adaptors B_c A_c and the router; the
    private adaptor is fixed. The private A is equal for all clients at the start, but differs from the starts of the
    other adaptors.

    Limiting case: without the odd rounds this is FLoRAL.
    """
    full_weight = torch.ones(1, dtype=problem.dtype, device=problem.device)
    predict, assign, shared_part = method.predict, method.assign, method.adapted
    (public,) = method.phases or (Phase(train=method.trained),)
    router_floats = method.cost.floats_sent

    def start():
        adaptor = adaptors.init(Stream(problem.seed, "private adaptor"))
        return repeated_start({name: value[None] for name, value in adaptor.items()}, problem.clients)

    def with_change(view):
        return {**view, "base": adaptors.added(view["base"], adaptors.products(view["private"], full_weight))}

    def adapted(view):
        assert shared_part is not None
        base, shared = shared_part(view)
        return base, joined(shared, adaptors.one_adaptor(view["private"], full_weight))

    preconditioner = {"private": adaptors.precondition} if problem.switches["preconditioner"] else {}
    merged = replace(adaptors, application="merged")
    with_one = merged.forward_backward_passes(problem.shape, problem.batch, clusters=1)
    return replace(
        method,
        groups={**method.groups, "private": Group(scope=Scope.PRIVATE, init=start, lr=problem.lr)},
        predict=lambda view, x, noise, mask: predict(with_change(view), x, noise, mask),
        adapted=adapted,
        assign=None if assign is None else lambda view, held: assign(with_change(view), held),
        phases=(
            Phase(train=("private",), when=lambda round, rounds: round % 2 == 1),
            replace(
                public, when=lambda round, rounds: round % 2 == 0, floats_sent={**router_floats, **public.floats_sent}
            ),
        ),
        precondition={**method.precondition, **preconditioner},
        cost=replace(method.cost, passes_per_sample=method.cost.passes_per_sample + with_one - 1, floats_sent={}),
    )

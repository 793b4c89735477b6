"""Momentum clustering (arXiv 2306.08393): every client moves a model of its own by the momentum of its cluster."""

import torch
from torch import Tensor

from floral.core.spec import Cost, Group, Method, Problem, Routing, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor
from floral.toolkit.routes import ModelChoice, cluster_vectors, params_of_vectors


def build(problem: Problem, *, momentum: float, iterations: int) -> Method:
    """Momentum clustering: the server clusters the clients' momenta; each client moves its own model by a centre.

    The models x_k are PRIVATE and have the same initial values. No model is shared or averaged. In a round, client k
    trains a copy w_k of x_k. Its momentum m_k is a running mean of its updates: m_k ← β m_k + (1-β) (x_k - w_k). In the
    client's first round it is the update itself. The server computes C centres v_c of the momenta, and client k makes
    the step x_k ← x_k - v_c(k) with the nearest centre c(k).

    The centres come from threshold clustering. It repeats v_c ← Σ_k p(k) (m_k if ‖m_k - v_c‖ ≤ τ else v_c) over the
    clients. It starts at the centres of the round before. In round 1, it starts at C momenta that are far
    from each other (see `first_centres`). The threshold τ is the 1/C quantile of the distances ‖m_k - v_c‖.

    Limiting case: with C = 1, β = 0 and all clients in every round, x_k is FedAvg's model, except for running
    statistics.

    The server clusters the last momenta of all clients that have taken part so far. The weight p(k) of a momentum is
    that of the round in which it was computed. Only the clients of the round make a step. If a client has one batch,
    its update is its gradient times lr.

    The clustering computes with the inner products of the momenta and of the old centres (the points). It stores a
    centre as weights of the points.

    Costs: a client sends its momentum and receives a centre.
    """
    model, clusters = problem.build_model(), problem.clusters
    choice, stream = ModelChoice(model=model, clusters=clusters), Stream(problem.seed, "model")
    models = model_groups(model, Scope.PRIVATE, stream, problem.lr, holders=problem.clients)

    def step_by_centres(served: ServerView) -> View:
        assert served.client_vectors is not None
        at, trained = served.client_vectors.clients, served.client_vectors.vectors
        memory, base = served.before["memory"], served.before["base"]  # changed in place: copies of K models are slow
        momenta, products, share, old_centres = (memory[name] for name in ("momentum", "products", "share", "centre"))
        is_first_round = not share.any()
        has_momentum, update = share[at, None] > 0, memory["model"][at] - trained
        momenta[at] = torch.where(has_momentum, momentum * momenta[at] + (1 - momentum) * update, update)
        products[at] = momenta[at] @ momenta.T
        products[:, at] = products[at].T
        share[at] = served.client_vectors.share.to(share.dtype)
        clients_seen = share.nonzero()[:, 0]
        of_momenta, with_old = products[clients_seen][:, clients_seen], (old_centres @ momenta.T)[:, clients_seen]
        point_products = torch.cat(
            [torch.cat([of_momenta, with_old.T], 1), torch.cat([with_old, old_centres @ old_centres.T], 1)]
        )
        weight = share[clients_seen] / share.sum()
        points, old = len(weight) + clusters, torch.arange(clusters, device=at.device) + len(weight)
        start = first_centres(of_momenta, clusters) if is_first_round else old
        centres = torch.nn.functional.one_hot(start, points).to(momenta.dtype)
        for _ in range(iterations):
            centres = moved(centres, point_products, weight)
        of_clients = centres.new_zeros(clusters, len(share))
        of_clients[:, clients_seen] = centres[:, : len(weight)]
        memory["centre"] = of_clients @ momenta + centres[:, len(weight) :] @ old_centres
        cluster = served.before["choice"]["cluster"].clone()
        cluster[clients_seen] = distances(centres, point_products)[:, : len(weight)].argmin(0).to(cluster.dtype)
        stepped = memory["model"][at] - memory["centre"][cluster[at].long()]
        memory["model"][at] = stepped
        for name, value in params_of_vectors(stepped, base).items():
            base[name][at] = value
        return {"choice": {"cluster": cluster}, "memory": memory}

    def memory():
        """Return the initial values of what the clients and the server keep from round to round, as vectors.

        These are the model and the last momentum of each client [K, d], the inner products of the momenta [K, K], the
        weight p(k) of each momentum [K], which is 0 before a client's first round, and the centres [C, d].
        """
        start, clients = cluster_vectors(models["base"].init()), problem.clients
        shapes = {"momentum": start.shape, "products": (clients, clients), "share": (clients,)}
        zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
        return {"model": start, **zeros, "centre": torch.zeros(clusters, model.size)}

    return Method(
        groups={
            **models,
            "choice": choice.group(problem.clients),
            "memory": Group(scope=Scope.FROZEN, init=memory, statistic=True),
        },
        predict=predictor(model),
        routing=Routing(served_log_route=choice.log_route, clusters=clusters),
        server=ServerStep(client_vector=trained_vector, update=step_by_centres),
        cost=Cost(floats_sent={"base": (model.size, model.size)}),
        noise=model.noise,
    )


def trained_vector(view: View) -> Tensor:
    """Return the parameters of a client's model as one vector [d], in the order of their sorted names."""
    return torch.cat([view["base"][name].flatten() for name in sorted(view["base"])])


def first_centres(products: Tensor, clusters: int) -> Tensor:
    """Return the indices [C] of the momenta that are the first centres. `products` [m, m] has their inner products.

    The first centre is the momentum that is farthest from the mean of all momenta. Each further centre is the momentum
    that is farthest from all centres before it.
    """
    mean = torch.full_like(products[:1], 1 / len(products))
    indices = [distances(mean, products)[0].argmax()]
    for _ in range(1, clusters):
        centres = torch.nn.functional.one_hot(torch.stack(indices), len(products)).to(products.dtype)
        indices.append(distances(centres, products).amin(0).argmax())
    return torch.stack(indices)


def moved(centres: Tensor, products: Tensor, weight: Tensor) -> Tensor:
    """Return the C centres after one step of threshold clustering of m momenta.

    Each centre is a weighted sum of p points, and `centres` [C, p] holds the weights. The first m points are the
    momenta, whose weights in means are `weight` [m]. `products` [p, p] has the inner products of the points. The new
    centre is a weighted mean over all momenta. A momentum that is farther from the old centre than the threshold τ is
    replaced by the old centre in this mean. τ is the 1/C quantile of the distances of all momenta from the old centre.
    """
    distance = distances(centres, products)[:, : len(weight)]
    within = (distance <= torch.quantile(distance, 1 / len(centres), dim=1, keepdim=True)) * weight
    remaining = (1 - within.sum(1, keepdim=True)) * centres
    return torch.cat([remaining[:, : len(weight)] + within, remaining[:, len(weight) :]], 1)


def distances(centres: Tensor, products: Tensor) -> Tensor:
    """Return the distances [C, p] between the C centres and the p points.

    Each centre is a weighted sum of the points, and `centres` [C, p] holds the weights. `products` [p, p] has the inner
    products of the points.
    """
    towards = centres @ products
    squared = products.diagonal() - 2 * towards + (towards * centres).sum(1, keepdim=True)
    return squared.clamp(min=0).sqrt()

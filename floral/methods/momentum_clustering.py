"""Momentum clustering (arXiv 2306.08393): cluster the clients' momenta, and step each model with its centre."""

import torch
from torch import Tensor

from floral.core.spec import Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups
from floral.toolkit.routes import ModelChoice, cluster_vectors, params_of_vectors


def build(problem: Problem, *, momentum: float, iterations: int) -> Method:
    """Momentum clustering: the server clusters the clients' momenta and moves each model by its cluster's centre.

    The models are CLUSTERED with one common start. The momentum of client k is m_k ← β m_k + (1-β) (w_c(k) - w_k); its
    update replaces the paper's gradient. The server computes the centres v_c by threshold clustering, then w_c ← w_c -
    v_c.

    Threshold clustering repeats v ← Σ_k p(k) (m_k if ‖m_k - v‖ ≤ τ else v) over the clients. τ is the 1/C quantile of
    their distances to v (published code: 10 iterations, the 10 % quantile with 10 clusters). A centre starts at the
    mean momentum of its clients; the centre of an empty cluster starts at the momentum farthest from the other centres.
    Each client then belongs to the cluster of the nearest centre.

    Limiting case: C = 1 with β = 0 and all clients in every round is FedAvg.

    In the paper all clients take part in every round. Here the server clusters the last momenta of all clients seen so
    far, with the weights p(k) of the rounds of these momenta. Momenta start at 0 without bias correction, so after n
    updates the momentum of a client has 1 - βⁿ of its final length. If few clients take part per round, this length
    influences the cluster of a new client. Momenta are most comparable in early rounds, when all models are near the
    common start.

    The task's server optimiser is not used, because the centres are the step. Running statistics are averaged by
    cluster. Centres are stored as weights of the momenta, so only the inner products of momenta are computed in their
    full size.
    """
    model, clusters = problem.build_model(), problem.clusters
    choice = ModelChoice(model=model, clusters=clusters)

    def step_with_centres(served: ServerView) -> View:
        assert served.client_vectors is not None
        at, share = served.client_vectors.clients, served.client_vectors.share
        cluster = served.before["choice"]["cluster"].clone()
        momenta, rows, products = (served.before["memory"][name].clone() for name in ("momentum", "rows", "products"))
        models = cluster_vectors(served.before["base"])
        update = models[cluster[at].long()] - served.client_vectors.vectors
        momenta[at], rows[at] = momentum * momenta[at] + (1 - momentum) * update, share.to(rows.dtype)
        products[at] = momenta[at] @ momenta.T
        products[:, at] = products[at].T
        clients_seen = rows.nonzero()[:, 0]
        seen_products, weight = products[clients_seen][:, clients_seen], rows[clients_seen] / rows.sum()
        centres = first_centres(seen_products, cluster[clients_seen], weight, clusters)
        for _ in range(iterations):
            centres = moved(centres, seen_products, weight)
        cluster[clients_seen] = distances(centres, seen_products).argmin(0).to(cluster.dtype)
        of_all = centres.new_zeros(clusters, len(rows))
        of_all[:, clients_seen] = centres
        return {
            "base": params_of_vectors(models - of_all @ momenta, served.before["base"]),
            "choice": {"cluster": cluster},
            "memory": {"momentum": momenta, "rows": rows, "products": products},
        }

    def memory():
        """The server's memory: the clients' last momenta [K, d], their inner products [K, K] and their weights p(k)
        [K].
        """
        clients = problem.clients
        sizes = {"momentum": (clients, model.size), "products": (clients, clients), "rows": (clients,)}
        return {name: torch.zeros(size) for name, size in sizes.items()}

    return Method(
        groups={
            **model_groups(
                model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=clusters, same_start=True
            ),
            "choice": choice.group(problem.clients),
            "memory": Group(scope=Scope.FROZEN, init=memory, statistic=True),
        },
        predict=choice.predict,
        routing=choice.routing,
        server=ServerStep(client_vector=choice.chosen_vector, update=step_with_centres),
        noise=model.noise,
    )


def first_centres(products: Tensor, cluster: Tensor, weight: Tensor, clusters: int) -> Tensor:
    """The initial centres as weights [C, m] of momenta whose inner products are [m, m].

    A centre is the mean of its cluster's momenta, or of an empty cluster the momentum farthest from the other centres.
    """
    centres = weight.new_zeros(clusters, len(weight))
    for c in range(clusters):
        members = weight * (cluster == c)
        if members.sum() > 0:
            centres[c] = members / members.sum()
        else:
            farthest = distances(centres[:c], products).amin(0) if c else products.diagonal()
            centres[c, farthest.argmax()] = 1.0
    return centres


def moved(centres: Tensor, products: Tensor, weight: Tensor) -> Tensor:
    """One step of threshold clustering on centres [C, m]; the centre replaces all momenta outside τ."""
    distance = distances(centres, products)
    within = (distance <= torch.quantile(distance, 1 / len(centres), dim=1, keepdim=True)) * weight
    return within + (1 - within.sum(1, keepdim=True)) * centres


def distances(centres: Tensor, products: Tensor) -> Tensor:
    """The distances ‖m_k - v_c‖ [C, m] for centres given as weights [C, m] of the momenta."""
    towards = centres @ products
    squared = products.diagonal() - 2 * towards + (towards * centres).sum(1, keepdim=True)
    return squared.clamp(min=0).sqrt()

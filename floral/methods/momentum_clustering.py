"""Momentum clustering (arXiv 2306.08393): cluster the clients' momenta, and move each cluster's model by its centre."""

import torch
from torch import Tensor

from floral.core.spec import Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups
from floral.toolkit.routes import ModelChoice, cluster_vectors, params_of_vectors


def build(problem: Problem, *, momentum: float, iterations: int) -> Method:
    """Momentum clustering: the server clusters the clients' momenta and moves each model by the centre of its cluster.

    The momentum m_k of client k is a running mean of its updates: m_k ← β m_k + (1-β) (w_c(k) - w_k). w_c(k) is the
    model that the client received, from its cluster c(k). w_k is the model after training. The server computes the
    centres v_c of the momenta and moves the models: w_c ← w_c - v_c. The models are CLUSTERED, and all have the same
    initial values. The paper uses gradients instead of updates.

    The centres come from threshold clustering. It repeats v_c ← Σ_k p(k) (m_k if ‖m_k - v_c‖ ≤ τ else v_c) over the
    clients. The threshold τ is the 1/C quantile of the distances ‖m_k - v_c‖ (published code: 10 iterations, the 10 %
    quantile with 10 clusters). A centre starts at the mean momentum of its clients. The centre of an empty cluster
    starts at the momentum farthest from the centres before it. Afterwards each client belongs to the cluster of the
    nearest centre.

    Limiting case: with C = 1, β = 0 and all clients in every round, this is FedAvg.

    In the paper all clients take part in every round. Here the server clusters the last momenta of all clients that
    have taken part so far. The weight p(k) of a momentum is that of the round in which it was computed. Momenta start
    at 0 without bias correction, so after n updates the momentum of a client has 1 - βⁿ of its final length. If few
    clients take part per round, this length influences the cluster of a new client. Momenta are most comparable in
    early rounds, when all models are near their common initial values.

    The task's server optimiser is not used, because the models move by the centres. Running statistics are averaged by
    cluster. Centres are stored as weights of the momenta. Only the inner products of the momenta are therefore computed
    in the full size d.
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
        """Return the initial values of the server's memory, which it keeps from round to round. All are zero.

        The memory holds the last momentum of each client [K, d], the inner products of these momenta [K, K], and the
        weight p(k) of each momentum in means [K].
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
    """Return the initial centres of the C clusters.

    Each centre is a weighted sum of the m momenta, and row c of the result [C, m] holds the weights of centre c. The
    centre of a cluster is the mean of its clients' momenta. The centre of an empty cluster is the momentum that is
    farthest from the centres of all clusters with smaller numbers. If the first cluster is empty, its centre is the
    momentum with the largest norm. `products` [m, m] holds the inner products of the momenta.
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
    """Return the C centres after one step of threshold clustering.

    Each centre is a weighted sum of the m momenta, and row c of the result [C, m] holds the weights of centre c. The
    new centre is a weighted mean over all momenta. A momentum that is farther from the old centre than the
    threshold τ is replaced by the old centre in this mean. τ is the 1/C quantile of the distances of all momenta from
    the old centre.
    """
    distance = distances(centres, products)
    within = (distance <= torch.quantile(distance, 1 / len(centres), dim=1, keepdim=True)) * weight
    return within + (1 - within.sum(1, keepdim=True)) * centres


def distances(centres: Tensor, products: Tensor) -> Tensor:
    """Return the distances [C, m] between the C centres and the m momenta.

    Each centre is a weighted sum of the momenta, and `centres` [C, m] holds the weights. `products` [m, m] holds the
    inner products of the momenta.
    """
    towards = centres @ products
    squared = products.diagonal() - 2 * towards + (towards * centres).sum(1, keepdim=True)
    return squared.clamp(min=0).sqrt()

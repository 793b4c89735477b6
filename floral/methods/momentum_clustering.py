"""Momentum clustering (arXiv 2306.08393): the server clusters the clients' momenta, and each steps with its centre."""

import torch
from torch import Tensor

from floral.core.spec import Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups
from floral.toolkit.routes import ModelChoice, cluster_vectors, params_of_vectors


def build(problem: Problem, *, momentum: float, iterations: int) -> Method:
    """Models CLUSTERED, all at one start; client k's momentum m_k ← β m_k + (1-β) (w_c(k) - w_k), its update standing
    for the paper's gradient; centre v_c by threshold clustering; then w_c ← w_c - v_c.

    Threshold clustering repeats v ← Σ_k p(k) (m_k if ‖m_k - v‖ ≤ τ else v) over the clients, τ the 1/C quantile of
    their distances to v (published code: 10 times, the 10 % quantile with 10 clusters). A centre begins at its clients'
    mean momentum, that of a cluster nobody is in at the momentum farthest from the other centres. A client is then in
    the cluster whose centre is nearest to its momentum.

    The paper has all clients in every round; here the server clusters the last momenta of all that it has seen, with
    the weights p(k) of the rounds that these are of. Momenta compare best at first, where all clients hold the common
    start. All begin at 0, and no bias is corrected, so that of a client seen n times is 1 - βⁿ as long as it will be:
    where few take part in a round, a client's first rounds also decide what it is near. A task's server optimiser is
    not used, for the centres are the step. C = 1 with β = 0 and all clients in a round is FedAvg. Running statistics
    are averaged by cluster.

    Centres are kept as weights of the momenta, so that the momenta's inner products are all that takes their size.
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
        known = rows.nonzero()[:, 0]
        seen, weight = products[known][:, known], rows[known] / rows.sum()
        centres = first_centres(seen, cluster[known], weight, clusters)
        for _ in range(iterations):
            centres = moved(centres, seen, weight)
        cluster[known] = distances(centres, seen).argmin(0).to(cluster.dtype)
        of_all = centres.new_zeros(clusters, len(rows))
        of_all[:, known] = centres
        return {
            "base": params_of_vectors(models - of_all @ momenta, served.before["base"]),
            "choice": {"cluster": cluster},
            "memory": {"momentum": momenta, "rows": rows, "products": products},
        }

    def memory():
        """The server's: the clients' last momenta [K, d], their inner products [K, K], and their weights [K] in the
        rounds that these are of."""
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
    """Where the centres begin, as weights [C, m] of the momenta whose inner products are [m, m]: at the mean of a
    cluster's momenta, else at the farthest momentum."""
    centres = weight.new_zeros(clusters, len(weight))
    for c in range(clusters):
        own = weight * (cluster == c)
        if own.sum() > 0:
            centres[c] = own / own.sum()
        else:
            farthest = distances(centres[:c], products).amin(0) if c else products.diagonal()
            centres[c, farthest.argmax()] = 1.0
    return centres


def moved(centres: Tensor, products: Tensor, weight: Tensor) -> Tensor:
    """One step of threshold clustering [C, m]: the momenta within τ, the centre itself in place of the others."""
    distance = distances(centres, products)
    within = (distance <= torch.quantile(distance, 1 / len(centres), dim=1, keepdim=True)) * weight
    return within + (1 - within.sum(1, keepdim=True)) * centres


def distances(centres: Tensor, products: Tensor) -> Tensor:
    """‖m_k - v_c‖ [C, m] of centres that are weights [C, m] of the momenta."""
    towards = centres @ products
    squared = products.diagonal() - 2 * towards + (towards * centres).sum(1, keepdim=True)
    return squared.clamp(min=0).sqrt()

"""Momentum clustering (arXiv 2306.08393): the server clusters the clients' momenta, and each steps with its centre."""

import torch
from torch import Tensor

from floral.parts import whole
from floral.routes import Choice, of_vectors, vectors
from floral.spec import Group, Method, Problem, Scope, Served, View
from floral.streams import Stream


def build(problem: Problem, *, momentum: float, iterations: int) -> Method:
    """Models CLUSTERED, all at one start; client k's momentum m_k ← β m_k + (1-β) (w_c(k) - w_k), its update standing
    for the paper's gradient; centre v_c by threshold clustering; then w_c ← w_c - v_c.

    Threshold clustering repeats v ← Σ_k p(k) (m_k if ‖m_k - v‖ ≤ τ else v) over the clients, τ the 1/C quantile of
    their distances to v (published code: 10 times, the 10 % quantile with 10 clusters). A centre begins at its clients'
    mean momentum, that of a cluster nobody is in at the momentum farthest from the other centres. A client is then in
    the cluster whose centre is nearest to its momentum.

    The paper has all clients in every round; here the server clusters the last momenta of all that it has seen, with
    the weights p(k) of the rounds that these are of. Momenta compare best at first, where all clients hold the common
    start. C = 1 with β = 0 and all clients in a round is FedAvg. Running statistics are averaged by cluster.
    """
    model, clusters = problem.build_model(), problem.clusters
    choice = Choice(model=model, clusters=clusters)

    def server(served: Served) -> View:
        assert served.singles is not None
        at, share = served.singles.learners, served.singles.share
        cluster = served.before["choice"]["cluster"].clone()
        momenta, rows = (served.before["memory"][name].clone() for name in ("momentum", "rows"))
        models = vectors(served.before["base"])
        update = models[cluster[at].long()] - served.singles.vectors
        momenta[at], rows[at] = momentum * momenta[at] + (1 - momentum) * update, share.to(rows.dtype)
        known = rows.nonzero()[:, 0]
        seen, weight = momenta[known], rows[known] / rows.sum()
        centres = first_centres(seen, cluster[known], weight, clusters)
        for _ in range(iterations):
            centres = torch.stack([moved(centre, seen, weight, clusters) for centre in centres])
        cluster[known] = torch.cdist(seen, centres).argmin(1).to(cluster.dtype)
        return {
            "base": of_vectors(models - centres, served.before["base"]),
            "choice": {"cluster": cluster},
            "memory": {"momentum": momenta, "rows": rows},
        }

    def memory():
        """The server's: the clients' last momenta [K, d], and their weights [K] in the rounds that these are of."""
        return {"momentum": torch.zeros(problem.clients, model.size), "rows": torch.zeros(problem.clients)}

    return Method(
        groups={
            **whole(model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=clusters, alike=True),
            "choice": choice.group(problem.clients),
            "memory": Group(scope=Scope.FROZEN, init=memory, statistic=True),
        },
        predict=choice.predict,
        log_route=choice.log_route,
        single=choice.vector,
        server=server,
        picks=True,
        draws=model.draws,
    )


def first_centres(momenta: Tensor, cluster: Tensor, weight: Tensor, clusters: int) -> Tensor:
    """Where the centres [C, d] begin: at the mean of a cluster's momenta [m, d], else at the farthest momentum."""
    centres: list[Tensor] = []
    for c in range(clusters):
        own = weight * (cluster == c)
        if own.sum() > 0:
            centres.append(torch.tensordot(own / own.sum(), momenta, 1))
        else:
            distance = torch.cdist(momenta, torch.stack(centres)).amin(1) if centres else momenta.norm(dim=1)
            centres.append(momenta[distance.argmax()])
    return torch.stack(centres)


def moved(centre: Tensor, momenta: Tensor, weight: Tensor, clusters: int) -> Tensor:
    """One step of threshold clustering: the momenta within τ, the centre itself in place of the others."""
    distance = (momenta - centre).norm(dim=1)
    within = distance <= torch.quantile(distance, 1 / clusters)
    return torch.tensordot(weight, torch.where(within[:, None], momenta, centre), 1)

"""Clustered federated learning (arXiv 1910.01991): split a cluster when the updates of its clients diverge."""

import torch

from floral.core.spec import Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups
from floral.toolkit.routes import ModelChoice, cluster_vectors


def build(problem: Problem, *, balance: float, patience: int, most: float) -> Method:
    """CFL: start with one cluster, and split a cluster in two when the updates of its clients diverge.

    Let Δ_k = w_k - w be the update of client k, and p(k) its share of the training samples. The server splits a cluster
    if ‖Σ_k p(k) Δ_k‖ < balance·max_k ‖Δ_k‖, where `balance` is an option. Then the clients still make large updates,
    but the mean of these updates is small. Complete-linkage clustering by cosine similarity of the updates gives the
    two halves. Both halves start at the mean model of the old cluster.

    The models are CLUSTERED, and all have the same initial values. Every client starts in cluster 0, and only a split
    by the server moves it to another cluster.

    The server remembers the last update of each client. It splits a cluster only when all clients of the cluster have
    sent an update since the cluster's last split, and not before round `patience`. The number of models is at most
    most·C, where C is the task's number of clusters.

    Limiting case: with balance = 0 this is FedAvg.
    """
    model, bound = problem.build_model(), max(1, round(most * problem.clusters))
    choice = ModelChoice(model=model, clusters=bound)
    models = model_groups(
        model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=bound, same_start=True
    )

    def memory():
        """Return the initial values of the server's memory, which it keeps from round to round.

        For each of the K clients, the memory holds its last update [K, d], the weight p(k) of this update in means
        [K], and whether the update is newer than the last split of the client's cluster [K]. All of these are zero at
        first. The memory also holds the number of clusters that have clients, at first 1.
        """
        updates = {"update": torch.zeros(problem.clients, model.size), "known": torch.zeros(problem.clients)}
        return {**updates, "rows": torch.zeros(problem.clients), "used": torch.ones(())}

    def split(served: ServerView) -> View:
        """Split every cluster in which the clients' updates diverge.

        Return the new models of all clusters, the new cluster of each client, and the server's memory for the next
        round.
        """
        assert served.client_vectors is not None
        memory = {name: tensor.clone() for name, tensor in served.before["memory"].items()}
        cluster, at = served.before["choice"]["cluster"].clone(), served.client_vectors.clients
        sent_from = cluster_vectors(served.before["base"])[cluster[at].long()]
        memory["update"][at] = served.client_vectors.vectors - sent_from
        memory["known"][at] = 1.0
        memory["rows"][at] = served.client_vectors.share.to(memory["rows"].dtype)
        after = {group: {n: t.clone() for n, t in served.after[group].items()} for group in models}
        for c in range(int(memory["used"])):
            members = (cluster == c).nonzero()[:, 0]
            if served.round < patience or memory["used"] >= bound or not pulled_apart(memory, members, balance):
                continue
            new = int(memory["used"])
            cluster[members[second_half(memory["update"][members])]] = new
            memory["known"][members] = 0.0
            memory["used"] += 1
            for params in after.values():
                for tensor in params.values():
                    tensor[new] = tensor[c]
        return {**after, "choice": {"cluster": cluster}, "memory": memory}

    return Method(
        groups={
            **models,
            "choice": choice.group(problem.clients),
            "memory": Group(scope=Scope.FROZEN, init=memory, statistic=True),
        },
        predict=choice.predict,
        routing=choice.routing,
        server=ServerStep(client_vector=choice.chosen_vector, update=split),
        noise=model.noise,
    )


def pulled_apart(memory: dict[str, torch.Tensor], members: torch.Tensor, balance: float) -> bool:
    """Return whether a cluster should be split, because the updates of its clients nearly cancel in their mean.

    The condition is that the norm of the mean is below `balance` times the largest norm of an update. The result is
    False for fewer than three clients, or if a client has sent no update since the cluster's last split.
    """
    if len(members) < 3 or not bool(memory["known"][members].all()):
        return False
    updates, rows = memory["update"][members], memory["rows"][members]
    mean = torch.tensordot(rows / rows.sum(), updates, 1)
    return bool(mean.norm() < balance * updates.norm(dim=1).max())


def second_half(updates: torch.Tensor) -> torch.Tensor:
    """Return, for each of the m clients of a cluster, whether it belongs to the second half of the cluster [m].

    The halves are those of complete-linkage clustering by the cosine similarity of the clients' `updates` [m, d].
    """
    from sklearn.cluster import AgglomerativeClustering  # imported here: slow, and only a split needs it

    unit = updates / updates.norm(dim=1, keepdim=True).clamp(min=1e-12)
    distance = (1 - unit @ unit.mT).clamp(min=0).cpu().numpy()
    halves = AgglomerativeClustering(2, metric="precomputed", linkage="complete").fit(distance).labels_
    return torch.from_numpy(halves != halves[0]).to(updates.device)

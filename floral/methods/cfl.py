"""Clustered federated learning (arXiv 1910.01991): split a cluster when the updates of its clients diverge."""

import torch

from floral.core.spec import Group, Method, Problem, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups
from floral.toolkit.routes import ModelChoice, cluster_vectors


def build(problem: Problem, *, balance: float, patience: int, most: float) -> Method:
    """CFL: start with one cluster and split a cluster in two when the updates of its clients diverge.

    The models are CLUSTERED with one common start. Every client starts in cluster 0, and the server's splits move it.

    The server splits a cluster if ‖Σ p(k) Δ_k‖ < balance·max_k ‖Δ_k‖: its clients still move, but not together. Δ_k =
    w_k - w is the update of client k. The halves are the complete-linkage bipartition by cosine similarity. Both start
    at the cluster's mean.

    Limiting case: balance = 0 is FedAvg.

    Differences from the paper:

    - The published thresholds (0.4 on the mean update, 1.6 on the largest) fit one model size and learning rate. Their
      ratio 0.25 does not depend on either, and replaces both as `balance`.
    - In the paper all clients take part in every round. Here the server keeps each client's last update. It splits a
      cluster when all its clients have sent one since its last split, but not before round `patience` (20 in the
      published code).
    - The number of models is at most most·C; the paper has no bound.
    - Means are weighted with p(k). If the task's server optimiser has moments, the second half of a split starts
      without any.
    """
    model, bound = problem.build_model(), max(1, round(most * problem.clusters))
    choice = ModelChoice(model=model, clusters=bound)
    models = model_groups(
        model, Scope.CLUSTERED, Stream(problem.seed, "model"), problem.lr, holders=bound, same_start=True
    )

    def memory():
        """The server's memory: last updates [K, d], whether each is newer than the last split, weights p(k) [K],
        clusters in use.
        """
        updates = {"update": torch.zeros(problem.clients, model.size), "known": torch.zeros(problem.clients)}
        return {**updates, "rows": torch.zeros(problem.clients), "used": torch.ones(())}

    def split(served: ServerView) -> View:
        """Split every cluster whose updates diverge."""
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
    """Whether the updates of at least three clients cancel in their mean; False while an update is missing."""
    if len(members) < 3 or not bool(memory["known"][members].all()):
        return False
    updates, rows = memory["update"][members], memory["rows"][members]
    mean = torch.tensordot(rows / rows.sum(), updates, 1)
    return bool(mean.norm() < balance * updates.norm(dim=1).max())


def second_half(updates: torch.Tensor) -> torch.Tensor:
    """Which clients [m] belong to the second half of the complete-linkage bipartition by cosine similarity."""
    from sklearn.cluster import AgglomerativeClustering  # imported here: slow, and only a split needs it

    unit = updates / updates.norm(dim=1, keepdim=True).clamp(min=1e-12)
    distance = (1 - unit @ unit.mT).clamp(min=0).cpu().numpy()
    halves = AgglomerativeClustering(2, metric="precomputed", linkage="complete").fit(distance).labels_
    return torch.from_numpy(halves != halves[0]).to(updates.device)

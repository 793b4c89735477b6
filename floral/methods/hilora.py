"""HiLoRA (arXiv 2603.02785): a shared, a cluster and a private adaptor, which are trained one after the other."""

from typing import Any

import torch
from torch import Tensor

from floral.adaptors.aggregation import flatten, require_matrix_products, svd_factors, unflatten
from floral.adaptors.attach import adaptors_of
from floral.core.spec import Cost, Group, Method, Phase, Problem, Routing, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.toolkit.clustering import cluster_of_all, spectral_clusters, subspace_distances
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup, repeated_start
from floral.toolkit.routes import ModelChoice
from floral.toolkit.stages import UNSENT_FLAG, flag_removed, phases_of_stage, stage_ends, stage_group


def build(
    problem: Problem,
    *,
    base: str,
    warmup: float,
    root: float,
    cluster: float,
    gamma: float,
    decay: float,
    **adaptor: Any,
) -> Method:
    """HiLoRA: client k computes with W + B_r A_r + B_c A_c + B_k A_k, trained in three stages one after the other.

    c is the cluster of the client. After the warm-up of W, the root adaptor B_r A_r is trained for the share `root` of
    the rounds. Then the server clusters the clients, and the adaptors of the clusters are trained for the share
    `cluster` of the rounds. In the rest of the rounds, each client trains a leaf B_k A_k of its own. What was trained
    before is fixed. The penalty gamma·‖BᵀB'‖² for each adaptor B' that was trained before makes the outputs of the new
    B orthogonal to it, summed over layers.

    The server averages products and factorises the mean, as in FlexLoRA: over all clients of the round for the root,
    and over those of a cluster for its adaptor.

    The clusters come from the subspaces of the root's factors B that clients send. The server keeps a running mean of
    B/‖B‖ for each client, with the factor `decay` for the old value. U_k are its left singular vectors. The distance of
    two clients is 1 - ‖U_iᵀU_j‖²/R, averaged over the layers. Spectral clustering gives the C clusters. Clients that
    have not taken part before join the largest cluster.

    W and root are SHARED, cluster adaptors CLUSTERED, leaves PRIVATE.

    Limiting cases: with root = 1 this is FlexLoRA. So it is with one cluster, if cluster adaptors and leaves are frozen
    at zero. With one client per round, FlexLoRA has the model of FedIT.

    The options `base` and `warmup` are as in `fedit`.

    Raises:
        Refused: the adaptor of a convolution is not a single matrix product.
    """
    adaptors, stream = adaptors_of(problem, **adaptor), Stream(problem.seed, "adaptors")
    require_matrix_products(adaptors)
    clusters, clients = problem.clusters, problem.clients
    choice = ModelChoice(model=adaptors.model, clusters=clusters)
    factors = [f"{layer}.B" for layer in adaptors.by_layer]
    start = {
        tier: adaptors.init(stream.at(at) if at else stream) for at, tier in enumerate(("root", "cluster", "leaf"))
    }

    route = torch.ones(3, dtype=problem.dtype, device=problem.device)

    def mixture(view):
        tiers = view["root"], choice.chosen_params(view, "cluster"), view["leaf"]
        return {name: torch.stack([tier[name] for tier in tiers]) for name in view["root"]}

    def predict(view, x, noise, mask):
        running = view.get("statistics", {})
        logits, statistics = adaptors(view["base"], mixture(view), route, running, x, noise, mask)
        return logits, {"statistics": statistics} if statistics else {}

    def overlap(first, second) -> Tensor:
        products = [first[name].flatten(1).mT @ second[name].flatten(1) for name in factors]
        return gamma * torch.stack([product.square().sum() for product in products]).sum()

    def cluster_penalty(view, received, noise):
        return overlap(view["root"], choice.chosen_params(view, "cluster"))

    def leaf_penalty(view, received, noise):
        return overlap(view["root"], view["leaf"]) + overlap(choice.chosen_params(view, "cluster"), view["leaf"])

    def last_of_root(rounds: int) -> int:
        return max(1, round(root * rounds))

    def last_of_cluster(rounds: int) -> int:
        return last_of_root(rounds) + max(1, round(cluster * rounds))

    def trains_cluster(now: int, rounds: int) -> bool:
        return last_of_root(rounds) < now <= last_of_cluster(rounds)

    def client_vector(view):
        return torch.cat([flatten(view["root"]), flatten(choice.chosen_params(view, "cluster"))])

    def aggregate(served: ServerView) -> View:
        assert served.client_vectors is not None
        sent, like = served.client_vectors, served.before["root"]
        share, at = sent.share.to(sent.vectors.dtype), sent.clients
        of_root, of_cluster = (unflatten(part, like) for part in sent.vectors.chunk(2, dim=1))
        if "root" in served.means:
            remember(served.before["memory"], at, of_root)
            changed = {"root": svd_factors(adaptors, of_root, share, served.means["root"])}
            if stage_ends(served):
                changed |= {"choice": {"cluster": clusters_of(served.before["memory"])}, **flag_removed(served)}
            return changed
        if "cluster" not in served.means:
            return {}
        new = {name: value.clone() for name, value in served.after["cluster"].items()}
        of_client = served.before["choice"]["cluster"][at].long()
        for c in of_client.unique().tolist():
            members = of_client == c
            held = {name: value[members] for name, value in of_cluster.items()}
            mean = {name: value[c] for name, value in served.means["cluster"].items()}
            weights = share[members] / share[members].sum()
            for name, value in svd_factors(adaptors, held, weights, mean).items():
                new[name][c] = value
        return {"cluster": new}

    def remember(memory, at, of_root):
        """Update, in place, the running means of B/‖B‖ [K, d, R] of the clients `at` of the round."""
        seen = memory["present"][at][:, None, None] > 0
        for name in factors:
            flat = of_root[name].flatten(2)  # the kernel of B is 1×1
            unit = flat / flat.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)
            memory[name][at] = torch.where(seen, decay * memory[name][at] + (1 - decay) * unit, unit)
        memory["present"][at] = 1

    def clusters_of(memory):
        held = [memory[name][memory["present"] > 0] for name in factors]
        distances = torch.stack([subspace_distances(of_layer) for of_layer in held]).mean(0)
        return cluster_of_all(spectral_clusters(distances, clusters), memory["present"])

    def memory():
        shapes = {name: (clients, len(value), value[0].numel()) for name, value in start["root"].items()}
        return {"present": torch.zeros(clients), **{name: torch.zeros(shapes[name]) for name in factors}}

    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "root": Group(scope=Scope.SHARED, init=lambda: start["root"], lr=problem.lr),
            "cluster": Group(
                scope=Scope.CLUSTERED, init=lambda: repeated_start(start["cluster"], clusters), lr=problem.lr
            ),
            "leaf": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(start["leaf"], clients), lr=problem.lr),
            "choice": choice.group(clients),
            "memory": Group(scope=Scope.FROZEN, init=memory, statistic=True),
            **stage_group(),
        },
        predict=predict,
        adapted=lambda view: (view["base"], adaptors.one_adaptor(mixture(view), route)),
        phases=phases_with_warmup(
            *phases_of_stage(Phase(train=("base", "root")), predict, last_of_root),
            Phase(train=("base", "cluster"), penalty=cluster_penalty, when=trains_cluster),
            Phase(
                train=("base", "leaf"),
                penalty=leaf_penalty,
                when=lambda now, rounds: now > last_of_cluster(rounds),
            ),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        routing=Routing(log_route=choice.log_route, serves_one_cluster=True, clusters=clusters),
        server=ServerStep(client_vector=client_vector, update=aggregate),
        noise=adaptors.noise,
        cost=Cost(
            passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=3),
            floats_sent=UNSENT_FLAG,
        ),
    )

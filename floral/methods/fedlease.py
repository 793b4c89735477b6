"""FedLEASE (arXiv 2509.15087): clustered adaptors as experts, and a gate that also decides how many are used."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.adaptors.aggregation import flatten, unflatten
from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.linear import LinearAdaptor
from floral.adaptors.per_sample import each_output, gate_input, gated_adaptors, mixed_outputs
from floral.core.spec import Cost, Group, Method, Phase, Problem, Routing, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.clustering import best_linkage, cluster_of_all
from floral.toolkit.parts import distinct_starts, fedavg_phase, model_groups, phases_with_warmup, repeated_start
from floral.toolkit.routes import ModelChoice
from floral.toolkit.stages import (
    UNSENT_FLAG,
    flag_removed,
    memory_group,
    phases_of_stage,
    remember,
    stage_ends,
    stage_group,
)


def build(problem: Problem, *, base: str, warmup: float, local: float, experts: int, **adaptor: Any) -> Method:
    """FedLEASE: clients are clustered by their adaptors; each cluster trains an expert, and a gate mixes the experts.

    After the warm-up of the base W, each client trains an adaptor of its own for the share `local` of the rounds.
    Nothing is averaged. Then the server clusters the clients (see `cluster`) into M clusters, 2 ≤ M ≤ `experts`. The
    mean adaptor of a cluster becomes its expert.

    From then on, every layer of a client of cluster c computes W x + Σ_j ω_j(x)·(B_j A_j x + b_j) over the M experts.
    The gate of the layer has 2M - 1 outputs softmax(G_c x): one for each expert, and M - 1 further ones that all mean
    the client's own expert c. The M largest count, rescaled to the sum 1. So a client uses between 1 and M experts. A
    client trains expert c and the gate G_c. The server averages them over the clients of the cluster.

    W is SHARED, experts and gates are CLUSTERED, the adaptor of the first part is PRIVATE. In a convolution, the gate
    reads the mean of the input over all positions.

    Limiting case: with M = 1, all weights are 1, and the second part is FedIT.

    The options `base` and `warmup` are as in `fedit`. The arrays have room for `experts` experts.
    """
    adaptors = gated_adaptors(problem, **adaptor)
    stream, clients = Stream(problem.seed, "adaptors"), problem.clients
    choice = ModelChoice(model=adaptors.model, clusters=experts)
    start = adaptors.init(stream)
    inputs = {name: start[f"{name}.A"].shape[1] for name in adaptors.by_layer}

    def gate_start(stream: Stream):
        return {n: stream.of(n).uniform("gate", (2 * experts - 1, i), -(i**-0.5), i**-0.5) for n, i in inputs.items()}

    def mixed(view, x, noise, mask):
        gate, at = choice.chosen_params(view, "gates"), torch.arange(experts, device=x.device)
        is_used, is_cluster = at < view["used"]["experts"], at == view["choice"]["cluster"]
        held = {n: torch.where(along(is_cluster, t), t, t.detach()) for n, t in view["experts"].items()}

        def adapt(name, x):
            part = adaptors.by_layer.get(name)
            if not isinstance(part, LinearAdaptor | ConvAdaptor):
                return None, None
            weights = expert_weights(gate_input(part, x) @ gate[name].mT, is_used, is_cluster)
            outputs = each_output(part, layer_params(held, name), adaptors.dropped(name, x, noise))
            return None, mixed_outputs(outputs, weights)

        logits, statistics = adaptors.model(view["base"], view.get("statistics", {}), x, noise, mask, adapt)
        return logits, {"statistics": statistics} if statistics else {}

    first = adaptors.predictor(("own",))

    def predict(view, x, noise, mask):
        stage = mixed if view["used"]["experts"] > 0 else first  # all clients are in the same stage
        return stage(view, x, noise, mask)[0], {}

    def last_alone(rounds: int) -> int:
        return max(1, round(local * rounds))

    def cluster(served: ServerView) -> View:
        """Cluster the clients at the end of the first part. The distance of two clients is the mean over the layers of
        1 - cos(B_i, B_j). `best_linkage` chooses the number of clusters.
        """
        assert served.client_vectors is not None
        vectors, present = remember(served, "adaptor", served.client_vectors.vectors)
        changed = {"choice": served.before["choice"], **flag_removed(served)}
        if stage_ends(served):
            sent = unflatten(vectors[present > 0], start)
            units = [F.normalize(sent[f"{layer}.B"].flatten(1), dim=1) for layer in adaptors.by_layer]
            labels = best_linkage(1 - torch.stack([of @ of.mT for of in units]).mean(0), experts)
            members = F.one_hot(labels, experts).to(vectors.dtype)
            weights = members / members.sum(0).clamp(min=1)
            exists = members.sum(0) > 0
            before = served.before["experts"]
            new = {n: torch.tensordot(weights.mT, t, 1) for n, t in sent.items()}
            new = {n: torch.where(along(exists, t), t, before[n]) for n, t in new.items()}
            cluster_of = cluster_of_all(labels, present)
            used = {"experts": exists.sum().to(cluster_of.dtype).reshape(1)}
            changed |= {"choice": {"cluster": cluster_of}, "experts": new, "used": used}
        return changed

    size, gate_size = adaptors.size, sum((2 * experts - 1) * count for count in inputs.values())
    shapes = adaptors.model.inputs(problem.shape, problem.batch)
    added = sum(part.multiply_adds(shapes[name], experts)[1] for name, part in adaptors.by_layer.items())
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "own": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(start, clients), lr=problem.lr),
            "experts": Group(scope=Scope.CLUSTERED, init=lambda: repeated_start(start, experts), lr=problem.lr),
            "gates": Group(
                scope=Scope.CLUSTERED,
                init=lambda: distinct_starts(gate_start, stream.of("gates"), experts),
                lr=problem.lr,
            ),
            "choice": choice.group(clients),
            "used": Group(scope=Scope.FROZEN, init=lambda: {"experts": torch.zeros(1)}, statistic=True),
            **memory_group("adaptor", clients, size),
            **stage_group(),
        },
        predict=predict,
        phases=phases_with_warmup(
            *phases_of_stage(Phase(train=("base", "own"), floats_sent={"own": (0, size)}), first, last_alone),
            Phase(
                train=("base", "experts", "gates"),
                predict=mixed,
                when=lambda now, rounds: now > last_alone(rounds),
                floats_sent={"experts": (experts * size, size), "gates": (gate_size, gate_size)},
            ),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        routing=Routing(log_route=choice.log_route, clusters=experts),
        server=ServerStep(client_vector=lambda view: flatten(view["own"]), update=cluster),
        noise=adaptors.noise,
        cost=Cost(
            passes_per_sample=1 + added / adaptors.model.multiply_adds(problem.shape, problem.batch),
            floats_sent=UNSENT_FLAG,
            floats_served={"own": 0, "experts": experts * size, "gates": gate_size},
        ),
    )


def expert_weights(logits: Tensor, is_used: Tensor, is_cluster: Tensor) -> Tensor:
    """Return the weights [..., E] of E experts from the outputs [..., 2E - 1] of a gate.

    `is_used` [E] marks the M experts that exist, and `is_cluster` [E] that of the client's cluster.
    """
    experts = len(is_used)
    valid = torch.cat([is_used, is_used[1:]])
    shares = torch.softmax(torch.where(valid, logits, -torch.inf), -1)
    rank = shares.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    largest = torch.where(rank < is_used.sum(), shares, 0.0)
    largest = largest / largest.sum(-1, keepdim=True)
    return largest[..., :experts] + is_cluster * largest[..., experts:].sum(-1, keepdim=True)


def along(vector: Tensor, like: Tensor) -> Tensor:
    """Reshape a vector [E] to [E, 1, ...], so that it fits the tensor `like` [E, ...]."""
    return vector.reshape(-1, *(1,) * (like.dim() - 1))

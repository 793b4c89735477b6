"""FedSoft (arXiv 2112.06053): train a personal model per client, with a penalty that pulls it to C cluster centres."""

import torch

from floral.core.spec import Cost, Group, Method, Phase, Problem, Routing, Scope, ServerStep
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, outputs_of_each_model, personal_groups, personal_predictor, sample_losses


def build(problem: Problem, *, lam: float, floor: float, start: str) -> Method:
    """FedSoft: train a personal model w_k per client, with a penalty that pulls it towards C cluster centres c_s.

    Client k gives each centre s an importance u_ks. At the start of the client's round, u_ks is the share of its
    training samples on which c_s has the smallest loss of all centres, but at least `floor`. These losses are computed
    in evaluation mode (with running statistics and without dropout). Then the client trains w_k on f_k(w) + lam/2 Σ_s
    u_ks ‖w - c_s‖² and sends it once. f_k is its training loss. The server computes c_s = Σ_k v_sk w_k with v_sk ∝ u_ks
    n_k over the clients of the round; n_k is the number of training samples.

    The centres are CLUSTERED, and their initial values differ. w_k and u_k [C] are PRIVATE. A client predicts with w_k.

    Limiting cases: for lam → 0, w_k is trained as in Local. With C = 1 and `start="centres"` this is FedProx with mu =
    lam, except for running statistics.

    w_k starts a round at its last value (`start="own"`), or at the weighted mean of the centres Σ_s u_ks c_s / Σ_s u_ks
    (`start="centres"`).

    Costs: the importances take C forward passes per training sample and round. The penalty is not counted.
    """
    model, stream, clusters = problem.build_model(), Stream(problem.seed, "model"), problem.clusters
    outputs_of = outputs_of_each_model(model)
    models = model_groups(model, Scope.CLUSTERED, stream, problem.lr, holders=clusters)
    personal_name = {group: "personal" if group == "base" else f"personal_{group}" for group in models}

    def assign(view, held):
        outputs, _ = outputs_of(view, held.x, None, None)
        best = sample_losses(problem.loss, outputs, held.y.expand(clusters, *held.y.shape)).argmin(0)
        counts = ((best == torch.arange(clusters, device=best.device)[:, None]) & held.mask).sum(-1).to(outputs.dtype)
        weights = (counts / held.mask.sum()).clamp(min=floor)
        changed = {"importance": {"weights": weights}}
        if start == "centres":
            changed |= {"personal": mean_of_centres({**view, **changed})["personal"]}
        return changed

    def mean_of_centres(view):
        """Return the weighted mean of the C cluster centres, as new values of the client's personal model.

        The weights are the client's importances u_ks of the centres. This mean is the model with the smallest penalty.
        """
        weights = view["importance"]["weights"]
        mean = weights / weights.sum()
        return {
            personal_name[group]: {name: torch.tensordot(mean, centre, 1) for name, centre in view[group].items()}
            for group in models
        }

    def penalty(view, received, noise):
        weights = view["importance"]["weights"]
        distances = [(w - view["base"][name]).square().flatten(1).sum(1) for name, w in view["personal"].items()]
        return lam / 2 * torch.dot(weights, torch.stack(distances).sum(0))

    def expand_to_centres(group):
        return lambda view: {name: value.expand(clusters, *value.shape) for name, value in view[group].items()}

    def served(view):
        weights = view["importance"]["weights"]
        return (weights / weights.sum()).log()

    even = torch.full((problem.clients, clusters), 1 / clusters)
    return Method(
        groups={
            **models,
            **personal_groups(model, stream, problem.lr, problem.clients),
            "importance": Group(scope=Scope.PRIVATE, init=lambda: {"weights": even}, statistic=True),
        },
        predict=personal_predictor(model),
        assign=assign,
        phases=(Phase(train=("personal",)),),
        penalty=penalty,
        server=ServerStep(upload={group: expand_to_centres(personal_name[group]) for group in models}),
        routing=Routing(
            log_route=lambda view: view["importance"]["weights"].log(), served_log_route=served, serves_one_cluster=True
        ),
        noise=model.noise,
        join=mean_of_centres,
        cost=Cost(assign_passes_per_sample=clusters / 3, floats_sent={"importance": (0, clusters)}),
    )

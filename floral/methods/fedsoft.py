"""FedSoft (arXiv 2112.06053): a model of each client's own, held near C centres, which are means of these models."""

import torch

from floral.core.spec import Cost, Group, Method, Phase, Problem, Routing, Scope, ServerStep
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, outputs_of_each_model, personal_groups, personal_predictor, sample_losses


def build(problem: Problem, *, lam: float, floor: float, start: str) -> Method:
    """Centres c_s CLUSTERED with distinct starts; w_k and the importances u_k [C] PRIVATE; w_k is served.

    At the start of a client's round u_ks is the share of its training rows on which c_s has the least loss of all
    centres (running statistics, no dropout), but at least `floor`. It trains w_k on f_k(w) + lam/2 Σ_s u_ks ‖w - c_s‖²
    and sends it once; c_s = Σ_k v_sk w_k with v_sk ∝ u_ks n_k over the clients of the round.

    lam towards 0 is Local for w_k; C = 1 with `start="centres"` is FedProx with mu = lam, but for running statistics.
    Chosen here, where accounts of the method leave it open: u is estimated in every round of a client (not every τ
    rounds), the floor does not rescale the other importances, the cohort is the benchmark's and weighs with v (it is
    not drawn with v), lam = 0.1, floor = 0.01, and w_k begins a round where it ended its last one (`start="own"`) or at
    Σ_s u_ks c_s / Σ_s u_ks ("centres"). A client that never takes part serves the start, and one that joins after
    training begins at that mean.

    Costs: the importances take C forward passes per training row and round; the penalty is not counted.
    """
    model, stream, clusters = problem.build_model(), Stream(problem.seed, "model"), problem.clusters
    each = outputs_of_each_model(model)
    models = model_groups(model, Scope.CLUSTERED, stream, problem.lr, holders=clusters)
    own = {group: "personal" if group == "base" else f"personal_{group}" for group in models}

    def assign(view, held):
        outputs, _ = each(view, held.x, None, None)
        best = sample_losses(problem.loss, outputs, held.y.expand(clusters, *held.y.shape)).argmin(0)
        counts = ((best == torch.arange(clusters, device=best.device)[:, None]) & held.mask).sum(-1).to(outputs.dtype)
        weights = (counts / held.mask.sum()).clamp(min=floor)
        changed = {"importance": {"weights": weights}}
        if start == "centres":
            changed |= {"personal": between({**view, **changed})["personal"]}
        return changed

    def between(view):
        """A personal model at the mean of the centres by importance, where the penalty alone is least."""
        weights = view["importance"]["weights"]
        mean = weights / weights.sum()
        return {
            own[group]: {name: torch.tensordot(mean, centre, 1) for name, centre in view[group].items()}
            for group in models
        }

    def penalty(view, received, noise):
        weights = view["importance"]["weights"]
        distances = [(w - view["base"][name]).square().flatten(1).sum(1) for name, w in view["personal"].items()]
        return lam / 2 * torch.dot(weights, torch.stack(distances).sum(0))

    def for_all(group):
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
        server=ServerStep(upload={group: for_all(own[group]) for group in models}),
        routing=Routing(
            log_route=lambda view: view["importance"]["weights"].log(), served_log_route=served, serves_one_cluster=True
        ),
        noise=model.noise,
        join=between,
        cost=Cost(assign_passes_per_sample=clusters / 3, floats_sent={"importance": (0, clusters)}),
    )

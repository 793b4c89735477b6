"""FFA-LoRA (arXiv 2403.12313): FedIT with a frozen factor A; only the factor B is trained and averaged."""

from typing import Any

from floral.adaptors.attach import adaptors_of, factor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FFA-LoRA: freeze the adaptors' factor A at its random start; train and average only the factor B.

    Base and B are SHARED, and A is FROZEN. All clients have the same A, so the average of the adaptors is exact:
    mean(B_k A) = mean(B_k) A over the clients k.

    Limiting case: with B frozen at zero this is FedAvg.

    Costs: A is never sent. In a square layer, the adaptor has half as many trained parameters and half as much traffic
    as in FedIT. The adaptor's bias belongs to B. The options `base` and `warmup` are as in `fedit`.
    """
    adaptors = adaptors_of(problem, **adaptor)
    stream = Stream(problem.seed, "adaptors")
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "A": Group(scope=Scope.FROZEN, init=lambda: factor(adaptors.init(stream), "A")),
            "B": Group(scope=Scope.SHARED, init=lambda: factor(adaptors.init(stream), "B"), lr=problem.lr),
        },
        predict=adaptors.predictor(("A", "B")),
        adapted=adaptors.summed(("A", "B")),
        phases=phases_with_warmup(
            Phase(train=("base", "B")), warmup_phase=fedavg_phase(adaptors.model), base=base, warmup=warmup
        ),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

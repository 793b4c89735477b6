"""RoLoRA (arXiv 2502.01755): train and average one factor of the adaptors per round; the mean product is exact."""

from typing import Any

from floral.adaptors.attach import adaptors_of, factor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """RoLoRA: train and average the adaptors' factors A and B in turns, so that the mean of their product is exact.

    Odd rounds train and average B while A is fixed. Even rounds train and average A while B is fixed. A fixed factor is
    equal for all clients k. The average of the products is therefore exact, for example mean(B_k A) = mean(B_k) A. A
    and B are SHARED.

    Limiting cases: the first round is that of FFA-LoRA. With A frozen at its start, this is FFA-LoRA, except that even
    rounds do not train B.

    Costs: a client uploads one factor per round. It downloads this factor and the factor of the previous round.

    The adaptor's bias belongs to B. The options `base` and `warmup` are as in `fedit`; a joint base trains in every
    round.
    """
    adaptors = adaptors_of(problem, **adaptor)
    stream = Stream(problem.seed, "adaptors")
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "A": Group(scope=Scope.SHARED, init=lambda: factor(adaptors.init(stream), "A"), lr=problem.lr),
            "B": Group(scope=Scope.SHARED, init=lambda: factor(adaptors.init(stream), "B"), lr=problem.lr),
        },
        predict=adaptors.predictor(("A", "B")),
        adapted=adaptors.summed(("A", "B")),
        phases=phases_with_warmup(
            Phase(train=("base", "B"), when=lambda round, rounds: round % 2 == 1),
            Phase(train=("base", "A"), when=lambda round, rounds: round % 2 == 0),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

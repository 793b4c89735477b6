"""RoLoRA (arXiv 2502.01755): the factors take turns, so that each round averages one of them and is exact."""

from typing import Any

from floral.adaptors.attach import factor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """A and B SHARED; odd rounds train and average B with A held, even rounds A with B held: mean(B_k A) = mean(B_k) A.

    B is first, for it starts at zero, where A has no gradient. The adaptor's bias, which the paper has none of, goes
    with B. A client sends one factor a round, and gets it and the one of the round before. Base and s as in `fedit`: a
    joint base is trained in every round.

    The factor A frozen at its start is FFA-LoRA, but for its rounds; in its first round it is FFA-LoRA.
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
        phases=phases_with_warmup(
            Phase(train=("base", "B"), when=lambda round, rounds: round % 2 == 1),
            Phase(train=("base", "A"), when=lambda round, rounds: round % 2 == 0),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

"""FedSA-LoRA (arXiv 2410.01463): average the adaptors' factor A; each client keeps its own factor B and classifier."""

from typing import Any

from floral.adaptors.attach import adaptors_of, factor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import SplitModel, head_name, phases_with_warmup, repeated_start


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FedSA-LoRA: average the factor A of the adaptors; each client keeps its own factor B_k and its own classifier.

    Client k computes with W + B_k A in the layers below the classifier, where W is the base. A is SHARED. B_k is
    PRIVATE and starts at zero. The classifier is the last linear layer of the base. It is PRIVATE, has the same initial
    values for all clients, and has no adaptor. The rest of the base is SHARED.

    Limiting case: with the adaptor frozen at zero this is FedPer.

    The adaptor's bias belongs to B. The options `base` and `warmup` are as in `fedit`, but the warm-up is FedPer.

    Raises:
        Refused: no layer that can have an adaptor comes before the last layer.
    """
    all_adaptors = adaptors_of(problem, **adaptor)
    split = SplitModel(model=all_adaptors.model, private_layers=[head_name(all_adaptors.model)], name="head")
    adaptors = all_adaptors.without(*split.private_layers)
    stream = Stream(problem.seed, "adaptors")
    return Method(
        groups={
            **split.groups(Stream(problem.seed, "model"), problem.lr, problem.clients),
            "A": Group(scope=Scope.SHARED, init=lambda: factor(adaptors.init(stream), "A"), lr=problem.lr),
            "B": Group(
                scope=Scope.PRIVATE,
                init=lambda: repeated_start(factor(adaptors.init(stream), "B"), problem.clients),
                lr=problem.lr,
            ),
        },
        predict=adaptors.predictor(("A", "B"), base=("base", "head")),
        adapted=adaptors.summed(("A", "B"), base=("base", "head")),
        phases=phases_with_warmup(
            Phase(train=("base", "head", "A", "B")),
            warmup_phase=Phase(train=("base", "head"), predict=split.predict),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

"""FedSA-LoRA (arXiv 2410.01463): average the factor A; factor B and the classifier stay with their client."""

from typing import Any

from floral.adaptors.attach import factor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import SplitModel, head_name, phases_with_warmup, repeated_start


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FedSA-LoRA: share the factor A, and keep the factor B and the classifier private, (W + B_k A, head_k).

    A is SHARED. B is PRIVATE and starts at zero. The base's last linear layer is PRIVATE with one common start and has
    no adaptor. The rest of the base is SHARED.

    Limiting case: with the adaptor frozen at zero it is FedPer.

    A client that never takes part serves the base with B = 0 and the head's start. The adaptor's bias, which the paper
    does not have, belongs to B. Here s = 1, as in `fedit` (paper: frozen pretrained base, s = alpha/r). The warm-up
    before a frozen base is FedPer: the classifier is private from the first round.

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
        phases=phases_with_warmup(
            Phase(train=("base", "head", "A", "B")),
            warmup_phase=Phase(train=("base", "head"), predict=split.predict),
            base=base,
            warmup=warmup,
        ),
        noise=all_adaptors.model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

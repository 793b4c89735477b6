"""FedSA-LoRA (arXiv 2410.01463): the factor A is averaged, the factor B and the classifier stay with their client."""

from typing import Any

from floral.adaptors.attach import factor
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import SplitModel, head_name, phases_with_warmup, repeated_start


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """A SHARED, B PRIVATE from zero, the base's last linear layer PRIVATE from one common start: (W + B_k A, head_k).

    The classifier has no adaptor: it is private as a whole. A client that has never taken part serves the base with
    B = 0 and the head's start. The adaptor's bias, which the paper has none of, goes with B. The rest of the base
    is SHARED, and s = 1, as in `fedit` (paper: frozen and pretrained, s = alpha/r). The warm-up before a frozen base is
    FedPer: the classifier is private from the first round.

    The adaptor frozen at zero is FedPer.

    Raises:
        Refused: no layer that can be adapted stands before the last one.
    """
    every = adaptors_of(problem, **adaptor)
    split = SplitModel(model=every.model, private_layers=[head_name(every.model)], name="head")
    adaptors = every.without(*split.private_layers)
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
        noise=every.model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

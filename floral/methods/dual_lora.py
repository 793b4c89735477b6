"""Dual LoRA (the simple form of FDLoRA, arXiv 2406.07925): a shared and a private low-rank adaptor, both added."""

from typing import Any

from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup, repeated_start


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """Base and one adaptor SHARED, one adaptor PRIVATE, all trained in one step: W + B A + B_k A_k.

    FDLoRA trains its two adaptors in stages and searches the weights of their sum without gradients; its text leaves
    much of that open, so here both weigh 1 and are trained jointly, each of the task's rank. The private A starts apart
    from the shared one, or both would begin in the same row space, and alike in all clients. Base and s as in
    `fedit`.

    The private adaptor frozen at zero is FedIT, the shared one frozen at zero is Local Adaptor.
    """
    adaptors = adaptors_of(problem, **adaptor)
    stream = Stream(problem.seed, "adaptors")
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "shared": Group(scope=Scope.SHARED, init=lambda: adaptors.init(stream), lr=problem.lr),
            "private": Group(
                scope=Scope.PRIVATE,
                init=lambda: repeated_start(adaptors.init(stream.at(1)), problem.clients),
                lr=problem.lr,
            ),
        },
        predict=adaptors.predictor(("shared",), ("private",)),
        phases=phases_with_warmup(
            Phase(train=("base", "shared", "private")),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=2)),
    )

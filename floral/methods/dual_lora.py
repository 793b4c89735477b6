"""Dual LoRA (a simple form of FDLoRA, arXiv 2406.07925): add a shared and a private low-rank adaptor to each layer."""

from typing import Any

from floral.adaptors.attach import adaptors_of
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup, repeated_start


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """Dual LoRA: add a shared low-rank adaptor B A and a private one B_k A_k to each layer W of the model.

    Client k computes with W + B A + B_k A_k. W and B A are SHARED, and B_k A_k is PRIVATE. All of them train
    together in each step.

    Limiting cases: with the private adaptor frozen at zero this is FedIT. With base="joint" and the shared adaptor
    frozen at zero it is Local Adaptor.

    The options `base` and `warmup` are as in `fedit`.
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
        adapted=adaptors.summed(("shared",), ("private",)),
        phases=phases_with_warmup(
            Phase(train=("base", "shared", "private")),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=2)),
    )

"""PerAda without distillation (arXiv 2302.06637): an averaged adaptor, and a private one that is pulled towards it."""

from typing import Any

from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import (
    fedavg_phase,
    join_from,
    model_groups,
    phases_with_warmup,
    proximal_penalty,
    repeated_start,
)


def build(problem: Problem, *, lam: float, base: str, warmup: float, **adaptor: Any) -> Method:
    """Adaptor w SHARED, adaptor v_k PRIVATE and served; both begin at one common start.

    A round has two phases of the task's epochs each, in the order of the paper's code: v_k on its own loss plus
    λ‖v_k - w‖² with w as received (no 1/2), beside the base as received; then base and w on their own loss. Where the
    paper averages uniformly, w is averaged with p(k), as by every method here. The server's distillation needs public
    data and is left out; norm layers and classifier, which the paper has private besides, belong to the base, whose
    running statistics are those of the shared phase. Base and s as in `fedit`.

    Base and w are FedIT's, whatever λ is; without the penalty v_k is trained alone.
    """
    adaptors = adaptors_of(problem, **adaptor)
    stream = Stream(problem.seed, "adaptors")
    shared, private = adaptors.predictor(("shared",)), adaptors.predictor(("private",))

    def personal(view, x, noise, mask):
        logits, _ = private(view, x, noise, mask)
        return logits, {}

    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "shared": Group(scope=Scope.SHARED, init=lambda: adaptors.init(stream), lr=problem.lr),
            "private": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(adaptors.init(stream), problem.clients), lr=problem.lr
            ),
        },
        predict=personal,
        phases=phases_with_warmup(
            Phase(train=("private",), penalty=proximal_penalty("private", 2 * lam, towards="shared")),
            Phase(train=("base", "shared"), predict=shared),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
        join=join_from(private="shared"),
    )

"""PerAda without distillation (arXiv 2302.06637): a shared adaptor, and a private adaptor that is pulled towards it."""

from typing import Any

from floral.adaptors.attach import adaptors_of
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import (
    fedavg_phase,
    join_from,
    model_groups,
    phases_with_warmup,
    proximal_penalty,
    repeated_start,
)


def build(problem: Problem, *, lam: float, base: str, warmup: float, **adaptor: Any) -> Method:
    """PerAda: train a shared adaptor w, and a private adaptor v_k per client with a penalty that pulls it towards w.

    w is SHARED, v_k is PRIVATE, and w and all v_k have the same initial values. A client predicts with v_k.

    A round has two phases, each for the task's epochs, in the order of the paper's code. First v_k trains on the
    client's loss plus λ‖v_k - w‖² (without the factor 1/2), while the received w and base are fixed. Then the base and
    w train on the client's loss alone.

    Limiting cases: base and w are trained as in FedIT for any λ. With λ = 0, v_k trains independently of w.

    Differences from the paper: w is averaged with p(k), not uniformly. The server's distillation is left out, because
    it needs public data. Norm layers and classifier are private in the paper; here they belong to the base. The running
    statistics of the base are those of the second phase. The options `base` and `warmup` and the scale s of an adaptor
    are as in `fedit`.
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

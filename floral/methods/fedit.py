"""FedIT (arXiv 2305.05644): train one shared low-rank adaptor, with the factors A and B averaged separately."""

from typing import Any

from floral.adaptors.attach import Adaptors, adaptors_of
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """FedIT: train one SHARED low-rank adaptor B A on a SHARED base W. Every layer computes with W + B A.

    The server averages the factors of the clients k separately: A = Σ_k p(k) A_k and B = Σ_k p(k) B_k. The product of
    these means is not the mean of the products. The difference mean(B_k A_k) - B A is the covariance of the factors
    over the clients.

    Limiting cases: with a warm-up of all rounds, this is FedAvg. With base="joint", it is FedAvg if the adaptor is
    frozen at zero, and it equals FLoRAL with one cluster and without a preconditioner.

    With base="warmup_freeze", FedAvg trains the base for the share `warmup` of the rounds, and then only the adaptor
    trains. With base="joint", base and adaptor are trained and averaged together.
    """
    return fedit_method(problem, adaptors_of(problem, **adaptor), base, warmup)


def fedit_method(problem: Problem, adaptors: Adaptors, base: str, warmup: float, **phase: Any) -> Method:
    """Build FedIT, or a method that extends FedIT.

    `phase` holds additional keyword arguments of `Phase`. They can change the local training of the adaptor or its
    traffic.
    """
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "adaptor": Group(
                scope=Scope.SHARED, init=lambda: adaptors.init(Stream(problem.seed, "adaptors")), lr=problem.lr
            ),
        },
        predict=adaptors.predictor(("adaptor",)),
        adapted=adaptors.summed(("adaptor",)),
        phases=phases_with_warmup(
            Phase(train=("base", "adaptor"), **phase),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

"""FedIT (arXiv 2305.05644): one low-rank adaptor for all, its factors A and B averaged each by itself."""

from typing import Any

from floral.adaptors.attach import Adaptors
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup


def build(problem: Problem, *, base: str, warmup: float, **adaptor: Any) -> Method:
    """Base and adaptor SHARED: W + B A with A = Σ_k p(k) A_k and B = Σ_k p(k) B_k.

    The product of the means is not the mean of the products: mean(B_k A_k) - B A is the covariance of the factors over
    the clients. The paper adapts a frozen pretrained base, for which base="warmup_freeze" stands: FedAvg for the share
    `warmup` of the rounds, then the adaptor alone; with base="joint" the base is trained and averaged too. The paper
    scales the adaptor by s = alpha/r; here s = 1, as for FLoRAL, with its start of A and without its preconditioner.

    The adaptor frozen at zero is FedAvg, and so is a warm-up of all rounds. It is FLoRAL with one cluster and without a
    preconditioner.
    """
    return shared(problem, adaptors_of(problem, **adaptor), base, warmup)


def shared(problem: Problem, adaptors: Adaptors, base: str, warmup: float, **adapting: Any) -> Method:
    """FedIT, whose phase of adapting may say more; other methods start from it."""
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "adaptor": Group(
                scope=Scope.SHARED, init=lambda: adaptors.init(Stream(problem.seed, "adaptors")), lr=problem.lr
            ),
        },
        predict=adaptors.predictor(("adaptor",)),
        phases=phases_with_warmup(
            Phase(train=("base", "adaptor"), **adapting),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        noise=adaptors.model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

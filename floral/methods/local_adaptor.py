"""Local Adaptor (the baseline of arXiv 2410.03497): a shared base and one low-rank adaptor per client."""

from typing import Any

import torch

from floral.methods.floral import adaptors_of
from floral.parts import same, whole
from floral.spec import Group, Method, Problem, Scope
from floral.streams import Stream


def build(problem: Problem, *, norm: str, **adaptor: Any) -> Method:
    """Base SHARED, adaptor PRIVATE with one common start. Adaptors frozen at zero are FedAvg."""
    adaptors = adaptors_of(problem, **adaptor).with_norms(norm)
    model = adaptors.model
    alone = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def start():
        one = {name: value[None] for name, value in adaptors.init(Stream(problem.seed, "adaptors")).items()}
        return same(one, problem.clients)

    def predict(view, x, draws, mask):
        running = view.get("statistics", {})
        logits, statistics = adaptors(view["base"], view["adaptor"], alone, running, x, draws, mask)
        return logits, {"statistics": statistics} if statistics else {}

    return Method(
        groups={
            **whole(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "adaptor": Group(scope=Scope.PRIVATE, init=start, lr=problem.lr),
        },
        predict=predict,
        precondition={"adaptor": adaptors.precondition} if problem.switches["preconditioner"] else {},
        draws=model.draws,
        passes=adaptors.passes(problem.shape, problem.batch, clusters=1),
    )

"""Local Adaptor (the baseline of arXiv 2410.03497): a shared base and one low-rank adaptor per client."""

from typing import Any

import torch

from floral.core.spec import Cost, Group, Method, Problem, Scope
from floral.core.streams import Stream
from floral.methods.floral import adaptors_of
from floral.toolkit.parts import model_groups, repeated_start


def build(problem: Problem, *, norm: str, **adaptor: Any) -> Method:
    """Base SHARED, adaptor PRIVATE with one common start. Adaptors frozen at zero are FedAvg.

    With `norm="plain"` the adaptor's own running statistics stay with it, those of the base are averaged as it is.
    """
    adaptors = adaptors_of(problem, **adaptor).with_norms(norm)
    model = adaptors.model
    alone = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def each(one):
        return lambda: repeated_start({name: value[None] for name, value in one().items()}, problem.clients)

    def predict(view, x, noise, mask):
        running, own = view.get("statistics", {}), view.get("adaptor_statistics", {})
        logits, after = adaptors(view["base"], view["adaptor"], alone, running, x, noise, mask, own)
        changed = {"statistics": after, "adaptor_statistics": adaptors.moved(own, running, after)}
        return logits, {group: changed[group] for group in changed if group in view}

    groups = {
        **model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        "adaptor": Group(
            scope=Scope.PRIVATE, init=each(lambda: adaptors.init(Stream(problem.seed, "adaptors"))), lr=problem.lr
        ),
    }
    if adaptors.statistics():
        groups["adaptor_statistics"] = Group(scope=Scope.PRIVATE, init=each(adaptors.statistics), statistic=True)
    return Method(
        groups=groups,
        predict=predict,
        precondition={"adaptor": adaptors.precondition} if problem.switches["preconditioner"] else {},
        noise=model.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

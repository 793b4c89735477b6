"""Local Adaptor (a baseline of arXiv 2410.03497): a shared base and one private low-rank adaptor per client."""

from typing import Any

import torch

from floral.adaptors.attach import adaptors_of
from floral.core.spec import Cost, Group, Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, repeated_start


def build(problem: Problem, *, norm: str, **adaptor: Any) -> Method:
    """Local Adaptor: train one SHARED base, and a PRIVATE low-rank adaptor for each client.

    All adaptors have the same initial values.

    Limiting case: with the adaptors frozen at zero this is FedAvg.
    """
    adaptors = adaptors_of(problem, **adaptor).with_norms(norm)
    model = adaptors.model
    full_weight = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def per_client(init):
        return lambda: repeated_start({name: value[None] for name, value in init().items()}, problem.clients)

    def predict(view, x, noise, mask):
        running, adaptor_running = view.get("statistics", {}), view.get("adaptor_statistics", {})
        logits, after = adaptors(view["base"], view["adaptor"], full_weight, running, x, noise, mask, adaptor_running)
        changed = {"statistics": after, "adaptor_statistics": adaptors.moved(adaptor_running, running, after)}
        return logits, {group: changed[group] for group in changed if group in view}

    groups = {
        **model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
        "adaptor": Group(
            scope=Scope.PRIVATE, init=per_client(lambda: adaptors.init(Stream(problem.seed, "adaptors"))), lr=problem.lr
        ),
    }
    if adaptors.statistics():
        groups["adaptor_statistics"] = Group(scope=Scope.PRIVATE, init=per_client(adaptors.statistics), statistic=True)
    return Method(
        groups=groups,
        predict=predict,
        adapted=lambda view: (view["base"], adaptors.one_adaptor(view["adaptor"], full_weight)),
        precondition={"adaptor": adaptors.precondition} if problem.switches["preconditioner"] else {},
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=adaptors.forward_backward_passes(problem.shape, problem.batch, clusters=1)),
    )

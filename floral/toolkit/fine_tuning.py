"""Fine-tuning: the first rounds train a shared model, and in the last rounds each client trains a copy of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from floral.core.spec import Cost, Group, Method, Params, Phase, Predict, Problem, Scope
from floral.core.streams import Stream
from floral.nn.model import Model
from floral.toolkit.parts import repeated_start


def fine_tuned_method(
    problem: Problem,
    model: Model,
    groups: Mapping[str, Group],
    predict: Predict,
    *,
    parts: tuple[str, ...],
    after: float,
) -> Method:
    """Return a method that trains the group "base" for the share `after` of the rounds, and then a copy per client.

    The parameters of the model are in the groups `parts` of `groups`, "base" is one of them, and `predict` predicts
    with them. In the later rounds these groups are fixed. Client k trains a PRIVATE difference d_k of all of them,
    which starts at 0, and predicts with their sum. This is the same as SGD on a copy of the model.
    """
    stream = Stream(problem.seed, "model")

    def personal(view, x, noise, mask):
        tuned = {part: {name: value + view["difference"][name] for name, value in view[part].items()} for part in parts}
        outputs, _ = predict({**view, **tuned}, x, noise, mask)
        return outputs, {}

    def averages(round: int, rounds: int) -> bool:
        return round <= after * rounds

    def zeros() -> Params:
        return {name: torch.zeros_like(value) for name, value in model.init(stream).items()}

    return Method(
        groups={
            **groups,
            "difference": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(zeros(), problem.clients), lr=problem.lr
            ),
        },
        predict=personal,
        phases=(
            Phase(train=("base",), predict=predict, when=averages),
            Phase(train=("difference",), when=lambda round, rounds: not averages(round, rounds)),
        ),
        noise=model.noise,
        cost=Cost(floats_served={"difference": 0}),
    )

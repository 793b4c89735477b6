"""FedBABU (arXiv 2106.06042): clients train only the body of a shared model; at the end each fine-tunes all of it."""

import torch

from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import SplitModel, head_name, repeated_start


def build(problem: Problem, *, after: float) -> Method:
    """FedBABU: first train the shared body under a head that never changes, then fine-tune a copy per client.

    The first rounds train the body, which is SHARED. `after` is their share of all rounds, for example 0.8. The head,
    the last linear layer, is FROZEN at its random initial values. In the later rounds body and head are fixed. Client k
    trains a PRIVATE difference d_k of both, which starts at 0, and predicts with their sum. This is the same as SGD on
    a copy of the model.

    Limiting case: with after = 1 this is FedAvg of a model whose head is not trained.

    Raises:
        Refused: the model has no layer before its head.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    split = SplitModel(model=model, private_layers=[head_name(model)], name="head")
    groups = split.groups(stream, problem.lr, clients=1)
    head = {name: value[0] for name, value in groups["head"].init().items()}

    def personal(view, x, noise, mask):
        tuned = {
            group: {name: value + view["difference"][name] for name, value in view[group].items()}
            for group in ("base", "head")
        }
        outputs, _ = split.predict({**view, **tuned}, x, noise, mask)
        return outputs, {}

    def averages(round: int, rounds: int) -> bool:
        return round <= after * rounds

    def zeros():
        return {name: torch.zeros_like(value) for name, value in model.init(stream).items()}

    return Method(
        groups={
            **groups,
            "head": Group(scope=Scope.FROZEN, init=lambda: head),
            "difference": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(zeros(), problem.clients), lr=problem.lr
            ),
        },
        predict=personal,
        phases=(
            Phase(train=("base",), predict=split.predict, when=averages),
            Phase(train=("difference",), when=lambda round, rounds: not averages(round, rounds)),
        ),
        noise=model.noise,
        cost=Cost(floats_served={"difference": 0}),
    )

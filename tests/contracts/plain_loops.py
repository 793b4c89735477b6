"""Parts of equations in plain PyTorch: gradients, SGD, averages and models, for a federation of five clients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from federations import make_data, simulate

EXACT = 1e-9
LR, BATCH, CLIENTS = 0.1, 4, range(5)
EQUAL, UNEQUAL = make_data((8, 8, 8, 8, 8)), make_data((9, 4, 7, 12, 5))
BACKENDS = [{"backend": "loop"}, {"backend": "batched", "chunk": 2}]
each_backend = pytest.mark.parametrize("how", BACKENDS, ids=lambda how: how["backend"])
FROZEN = {"base": "warmup_freeze", "warmup": 0.25}
"""Round 1 of 4 is FedAvg. Later rounds train adaptors."""


def simulated(variant, data, model="mlp", **how):
    """A simulation of five clients that all take part in every round, with their batches in stored order."""
    return simulate(
        variant,
        model=model,
        data=data,
        **{"participation": 1.0, "lr": LR, "batch": BATCH, "switches": {"batches": "fixed"}, **how},
    )


def samples(simulation, k):
    rows = simulation.data.train
    return rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))


def batches(simulation, k):
    x, y = samples(simulation, k)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def shares(simulation):
    count = torch.from_numpy(simulation.data.train.count).double()
    return count / count.sum()


def features(w, x):
    return torch.relu(F.linear(x.flatten(1), w["hidden.weight"], w["hidden.bias"]))


def net(w, x):
    return F.linear(features(w, x), w["out.weight"], w["out.bias"])


def loss(w, x, y):
    return F.cross_entropy(net(w, x), y)


def gradients(loss_of, *models):
    """The gradients of loss_of(*models) for each of the models."""
    leaves = [{name: t.detach().clone().requires_grad_() for name, t in w.items()} for w in models]
    loss_of(*leaves).backward()
    return [{n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in w.items()} for w in leaves]


def stepped(w, gradient, lr=LR):
    return {name: t - lr * gradient[name] for name, t in w.items()}


def sgd(w, data, loss_of=loss):
    for x, y in data:
        (gradient,) = gradients(lambda w, x=x, y=y: loss_of(w, x, y), w)
        w = stepped(w, gradient)
    return w


def mean(models, weights):
    return {name: sum(p * w[name] for p, w in zip(weights, models, strict=True)) for name in models[0]}


def row(params, k):
    return {name: t[k].clone() for name, t in params.items()}


def copied(params):
    return {name: t.clone() for name, t in params.items()}


def with_adaptors(w, *adaptors):
    """The model w, with the products of low-rank adaptors added to its layers."""
    changed = dict(w)
    for adaptor in adaptors:
        for layer in ("hidden", "out"):
            if f"{layer}.A" in adaptor:
                changed[f"{layer}.weight"] = changed[f"{layer}.weight"] + adaptor[f"{layer}.B"] @ adaptor[f"{layer}.A"]
                changed[f"{layer}.bias"] = changed[f"{layer}.bias"] + adaptor[f"{layer}.bias"]
    return changed


def adapted_loss(base, *fixed):
    """The loss of one adaptor on the model `base` with the adaptors `fixed`, as an argument `loss_of` of `sgd`."""
    return lambda adaptor, x, y: loss(with_adaptors(base, *fixed, adaptor), x, y)


def inputs_of_test(simulation):
    """The inputs of the test samples that `served` gives to every client."""
    return simulation.data.test.decode(simulation.data.test.x[:8])

"""FedPara and pFedPara: their limiting cases, and their equations written out as plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import federations
import plain_loops as plain
import pytest
import torch
import torch.nn.functional as F
from federations import SHALLOW, assert_close, make_data, served, train, trained
from plain_loops import CLIENTS, EXACT, UNEQUAL, each_backend, simulated

from floral.config.reading import ConfigError
from floral.core.streams import Stream
from floral.toolkit.hadamard import composed, drawn_factors, rank_of

LAYERS = ("hidden", "out")


def weight(w, layer, plus=0):
    first, second = (w[f"{layer}.weight.X{n}"] @ w[f"{layer}.weight.Y{n}"].T for n in (1, 2))
    return first * (second + plus)


def whole(w, plus=0):
    return {f"{layer}.weight": weight(w, layer, plus) for layer in LAYERS} | {
        name: value for name, value in w.items() if name.endswith(".bias")
    }


@each_backend
def test_fedpara(how):
    """W = (X₁ Y₁ᵀ) ⊙ (X₂ Y₂ᵀ) in each layer; SGD on the factors, which are averaged separately."""
    simulation = simulated("fedpara", UNEQUAL, **how)
    state = simulation.start()
    w = plain.copied(state.values["base"])
    for round in (1, 2):
        sent = []
        for k in CLIENTS:
            own = w
            for x, y in plain.batches(simulation, k):
                (gradient,) = plain.gradients(lambda w, x=x, y=y: F.cross_entropy(plain.net(whole(w), x), y), own)
                own = plain.stepped(own, gradient)
            sent.append(own)
        w = plain.mean(sent, plain.shares(simulation))
        simulation.train(state, round)
        assert_close(state.values["base"], w, EXACT)


@each_backend
def test_pfedpara(how):
    """W = W₁ ⊙ (W₂ + 1): the factors of W₁ and the biases are averaged, those of W₂ stay with the client."""
    simulation = simulated("pfedpara", UNEQUAL, **how)
    state = simulation.start()
    w, own = plain.copied(state.values["base"]), [plain.row(state.values["private"], k) for k in CLIENTS]
    for round in (1, 2):
        sent = []
        for k in CLIENTS:
            shared, private = w, own[k]
            for x, y in plain.batches(simulation, k):
                of_shared, of_private = plain.gradients(
                    lambda s, p, x=x, y=y: F.cross_entropy(plain.net(whole({**s, **p}, 1), x), y), shared, private
                )
                shared, private = plain.stepped(shared, of_shared), plain.stepped(private, of_private)
            sent.append(shared)
            own[k] = private
        w = plain.mean(sent, plain.shares(simulation))
        simulation.train(state, round)
        assert_close(state.values["base"], w, EXACT)
        for k in CLIENTS:
            assert_close(plain.row(state.values["private"], k), own[k], EXACT)


def test_pfedpara_without_its_private_factor_is_fedpara():
    """W₂ = 0 in pFedPara, and X₂ Y₂ᵀ = 1 in FedPara, both fixed: the weight is W₁ = X₁ Y₁ᵀ in both."""
    drawn = federations.simulate("pfedpara").method.groups["base"].init()

    def without_private(method):
        zeros = {name: torch.zeros_like(t) for name, t in method.groups["private"].init().items()}
        private = replace(method.groups["private"], lr=0.0, init=lambda: zeros)
        return replace(method, groups={**method.groups, "private": private})

    def with_ones(method):
        """The second factors are a group of their own that is fixed, with the product 1."""
        start = method.groups["base"].init()
        ones = {}
        for name, t in start.items():
            if name.endswith("2"):
                ones[name] = torch.ones_like(t).double() / (t.shape[1] if name.endswith("X2") else 1)
        base = replace(method.groups["base"], init=lambda: drawn)
        second = replace(base, lr=0.0, fixed=True, init=lambda: ones)
        predict = method.predict

        def joined(view, x, noise, mask):
            return predict({**view, "base": {**view["base"], **view["second"]}}, x, noise, mask)

        return replace(method, groups={**method.groups, "base": base, "second": second}, predict=joined)

    ours = federations.simulate("pfedpara", change=without_private)
    theirs = federations.simulate("fedpara", change=with_ones)
    end, other = train(ours), train(theirs)
    assert_close(end.values["base"], other.values["base"], EXACT)
    torch.testing.assert_close(served(ours, end), served(theirs, other), rtol=0, atol=EXACT)


@pytest.mark.parametrize("model", [model for model in SHALLOW if federations.buildable("pfedpara", model)])
def test_pfedpara_of_one_client_shares_and_keeps_the_same(model):
    """With a single client it does not matter whether W₂ is private: FedPara with the same start and W₂ + 1."""
    shape, text = federations.SHAPES.get(model, (4, 4)), model in federations.TEXT
    data = make_data((13,), clusters=1, shape=shape, text=text)
    how = {"data": data, "participation": 1.0, "model": model}

    def shared(method):
        private = method.groups["private"]
        start = {name: t[0] for name, t in private.init().items()}
        group = replace(method.groups["base"], init=lambda: start)
        return replace(method, groups={**method.groups, "private": group})

    ours, theirs = trained("pfedpara", **how), trained("pfedpara", change=shared, **how)
    assert_close(ours.values["base"], theirs.values["base"], EXACT)
    assert_close({n: t[0] for n, t in ours.values["private"].items()}, theirs.values["private"], EXACT)


@pytest.mark.parametrize("shape", [(64, 32), (10, 200), (16, 8, 3, 3), (5, 3)])
def test_the_smallest_rank_can_give_full_rank_and_the_largest_keeps_the_number_of_parameters(shape):
    tensor = torch.zeros(shape)
    smallest, largest = rank_of(tensor, 0.0), rank_of(tensor, 1.0)
    assert smallest == math.ceil(math.sqrt(min(shape[:2]))) <= largest

    def size(rank):
        return 2 * (rank * (shape[0] + shape[1]) + (rank**2 * math.prod(shape[2:]) if shape[2:] else 0))

    if largest > smallest:
        assert size(largest) <= tensor.numel() < size(largest + 1)
    stream = Stream(0, "factors")
    parts = {
        f"w.{key}{n}": t.double()
        for n in (1, 2)
        for key, t in drawn_factors(stream.at(n), tensor.shape, smallest, 0.25).items()
    }
    products = [composed(parts, "w", n) for n in (1, 2)]
    assert products[0].shape == tensor.shape
    product = (products[0] * products[1]).flatten(1)
    assert int(torch.linalg.matrix_rank(product)) == min(product.shape) or smallest**2 < min(product.shape)


def test_the_weights_start_with_the_variance_of_the_task():
    model = {"kind": "mlp", "hidden": 400}
    start = federations.simulate("fedpara", model=model).start().values["base"]
    task = federations.simulate("fedavg", model=model).start().values["base"]
    ratio = weight(start, "hidden").var() / task["hidden.weight"].var()
    assert 0.5 < float(ratio) < 2


def test_fedpara_refuses_values_of_a_file(tmp_path):
    from safetensors.torch import save_file

    values = {name: t.float() for name, t in federations.simulate("fedavg").start().values["base"].items()}
    save_file(values, str(tmp_path / "start.safetensors"))
    keys = {"kind": "mlp", "hidden": 5, "weights": str(tmp_path / "start.safetensors")}
    with pytest.raises(ConfigError, match="trains factors from scratch"):
        federations.simulate("fedpara", model=keys)

"""Layers by themselves: each equals PyTorch's, and gives the same for many clients at once as for each alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.engine.operations import EachOperation
from floral.nn.attention import attend, projections
from floral.nn.layers import Conv2d, ConvTranspose2d, Position
from floral.nn.model import Model
from floral.nn.norms import GroupNorm, LayerNorm, instance_norm
from floral.nn.products import Window

NORMS = [
    (GroupNorm(6, 2), torch.nn.GroupNorm(2, 6)),
    (GroupNorm(6, 1), torch.nn.GroupNorm(1, 6)),
    (instance_norm(6), torch.nn.InstanceNorm2d(6, affine=True)),
    (LayerNorm(4), torch.nn.LayerNorm(4)),
]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("layer", "torchs"), NORMS)
def test_norms_are_torchs(layer, torchs):
    """Outputs and gradients, with a scale and a shift that are not those of the start."""
    params = {name: random(layer.features, seed=at).requires_grad_() for at, name in enumerate(("weight", "bias"))}
    torchs = torchs.double()
    torchs.load_state_dict({name: tensor.detach() for name, tensor in params.items()})
    x = (3 + 2 * random(2, 6, 5, 4)).requires_grad_()
    ours, theirs = layer(params, x), torchs(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    mine = torch.autograd.grad((ours**3).sum(), [x, params["weight"], params["bias"]])
    other = torch.autograd.grad((theirs**3).sum(), [x, torchs.weight, torchs.bias])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("layer", "torchs"), NORMS)
def test_norms_of_many_clients_at_once(layer, torchs):
    del torchs
    params, x = {"weight": random(3, layer.features), "bias": random(3, layer.features, seed=1)}, random(3, 2, 6, 5, 4)
    alone = torch.stack([layer({name: t[k] for name, t in params.items()}, x[k]) for k in range(3)])
    torch.testing.assert_close(torch.vmap(layer)(params, x), alone, rtol=0, atol=1e-12)


def test_groups_that_do_not_divide_the_features_are_refused():
    with pytest.raises(Refused, match="3 groups do not divide 4 inputs and 6 outputs"):
        Conv2d(4, 6, (3, 3), groups=3)
    with pytest.raises(Refused, match="6 features cannot be normalised in 4 groups"):
        GroupNorm(6, 4)


CONVOLUTIONS = [
    (Conv2d(4, 6, (3, 3), padding=(1, 1), groups=2), torch.nn.Conv2d(4, 6, 3, padding=1, groups=2)),
    (Conv2d(4, 4, (3, 2), stride=(2, 1), groups=4), torch.nn.Conv2d(4, 4, (3, 2), stride=(2, 1), groups=4)),
    (Conv2d(4, 2, (3, 2), dilation=(2, 3)), torch.nn.Conv2d(4, 2, (3, 2), dilation=(2, 3))),
    (
        ConvTranspose2d(4, 2, (3, 2), (2, 3), (1, 0), (1, 2), dilation=(2, 1)),
        torch.nn.ConvTranspose2d(4, 2, (3, 2), (2, 3), (1, 0), (1, 2), dilation=(2, 1)),
    ),
]


@pytest.mark.parametrize(("layer", "torchs"), CONVOLUTIONS)
def test_convolutions_are_torchs(layer, torchs):
    params = {name: tensor.double() for name, tensor in layer.init(Stream(0, "layer")).items()}
    assert {name: t.shape for name, t in params.items()} == {n: t.shape for n, t in torchs.state_dict().items()}
    for name, tensor in torchs.state_dict().items():  # both uniform within the same bound
        assert float(params[name].abs().max()) <= 1 / math.sqrt(math.prod(torchs.weight.shape[1:]))
        assert float(tensor.abs().max()) <= 1 / math.sqrt(math.prod(torchs.weight.shape[1:]))
    torchs = torchs.double()
    torchs.load_state_dict(params)
    x = random(3, 4, 7, 8)
    ours = layer(params, x)
    torch.testing.assert_close(ours, torchs(x), rtol=0, atol=1e-12)
    many = torch.vmap(layer)({name: torch.stack([t, 2 * t]) for name, t in params.items()}, torch.stack([x, x]))
    torch.testing.assert_close(many, torch.stack([ours, 2 * ours]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("layer", "torchs"), CONVOLUTIONS)
def test_multiply_adds_of_a_convolution_are_its_non_zero_products(layer, torchs):
    """Each multiply-add of ones adds one, where there is no padding that would be multiplied too."""
    del torchs
    layer = replace(layer, padding=(0, 0), **({"output_padding": (0, 0)} if isinstance(layer, ConvTranspose2d) else {}))
    ones = {name: torch.ones_like(t) for name, t in layer.init(Stream(0, "layer")).items() if name == "weight"}
    x = torch.ones(3, 4, 7, 8)
    assert layer.multiply_adds(x.shape) == int(layer(ones, x).sum())


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(causal):
    torchs = torch.nn.MultiheadAttention(6, 2, batch_first=True).double()
    model = Model(layers=dict(projections("a", 6, 2)), forward=lambda call, x: attend(call, "a", x, 2, causal=causal))
    params = {name: t.double() for name, t in model.init(Stream(0, "attention")).items()}
    parts = [f"a.{part}" for part in ("query", "key", "value")]
    torchs.load_state_dict(
        {
            "in_proj_weight": torch.cat([params[f"{part}.weight"] for part in parts]),
            "in_proj_bias": torch.cat([params[f"{part}.bias"] for part in parts]),
            "out_proj.weight": params["a.merge.weight"],
            "out_proj.bias": params["a.merge.bias"],
        }
    )
    x = random(3, 5, 6)
    later = torch.full((5, 5), -math.inf, dtype=torch.float64).triu(1) if causal else None
    expected, _ = torchs(x, x, x, attn_mask=later, need_weights=False)
    torch.testing.assert_close(model(params, {}, x, None, None)[0], expected, rtol=0, atol=1e-12)


def test_causal_attention_does_not_see_what_comes_later():
    model = Model(layers=dict(projections("a", 4, 2)), forward=lambda call, x: attend(call, "a", x, 2, causal=True))
    params = {name: t.double() for name, t in model.init(Stream(0, "attention")).items()}
    x = random(1, 5, 4)
    changed = torch.cat([x[:, :3], random(1, 2, 4, seed=1)], 1)
    first, second = (model(params, {}, some, None, None)[0] for some in (x, changed))
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.equal(first[:, 3:], second[:, 3:])


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(Refused, match="4 heads do not divide the width 6"):
        projections("a", 6, 4)


def test_positions_tell_places_apart_up_to_the_length_at_hand():
    layer = Position(5, 4)
    params = layer.init(Stream(0, "position"))
    x = torch.zeros(2, 3, 4)
    assert torch.equal(layer(params, x), params["weight"][:3].expand(2, 3, 4))


class WeightGradients(EachOperation):
    """Notes the strides with which PyTorch computes weight gradients of 1×1 kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[list[int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default and args[10][1]:
            self.strides.append(list(args[4]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("stride", "side"), [((2, 2), 8), ((2, 3), 7), ((1, 2), 5)])
def test_a_narrow_1x1_kernel_never_reaches_the_operation_of_onednn_that_writes_beyond_its_memory(stride, side):
    """Such a gradient has stopped whole processes. Here it is computed in float64, which oneDNN does not support."""
    window, x, weight = Window(stride), random(4, 3, side, side), random(5, 3, 1, 1, seed=1)
    leaves = [t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, weight)]
    bias = random(5, seed=2).requires_grad_()
    y = window(*leaves, bias)
    expected = torch.autograd.grad((y**3).sum(), [*leaves, bias])
    with WeightGradients() as seen:
        gradients = window.backward(3 * y.detach() ** 2, *(t.detach() for t in leaves), (True, True, True))
    assert seen.strides == [[1, 1]]
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-12, atol=1e-12)

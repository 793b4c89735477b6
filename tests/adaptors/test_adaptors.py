"""The contracts of every adaptor kind: merged equals unmerged, the start is zero, ranks and preconditioners by hand."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federations import NAMES, assert_close, assert_equal_states, simulate, trained

from floral.adaptors.attach import attach
from floral.adaptors.conv import ConvAdaptor, expand_to_kernel
from floral.adaptors.embedding import EmbeddingAdaptor
from floral.adaptors.factors import resolve, solve
from floral.adaptors.linear import LinearAdaptor
from floral.adaptors.norm import NormAdaptor
from floral.config import catalogue, plugins
from floral.config.reading import ConfigError
from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.models import cnn, linear, mlp, vit
from floral.nn.layers import Conv2d, ConvTranspose2d, Linear
from floral.nn.model import Model
from floral.nn.norms import NORMS, BatchNorm, GroupNorm, LayerNorm, instance_norm

pytestmark = pytest.mark.usefixtures("without_recording")

FACTORISATIONS = ["in", "out", "balanced", "balanced_2d"]
CONVOLUTIONS = [
    Conv2d(3, 4, (3, 3), padding=(1, 1)),
    Conv2d(4, 3, (3, 3), stride=(2, 2)),
    Conv2d(3, 5, (1, 1)),
    Conv2d(5, 2, (1, 1), stride=(2, 1), padding=(1, 0)),
    Conv2d(2, 3, (5, 2), stride=(1, 2), padding=(2, 1)),
    Conv2d(3, 2, (1, 4), stride=(3, 2), padding=(0, 3)),
    Conv2d(2, 2, (4, 1), stride=(2, 3), padding=(3, 2), bias=False),
]
OTHERS = [
    Conv2d(4, 6, (3, 3), padding=(1, 1), groups=2),
    Conv2d(4, 4, (3, 2), stride=(2, 1), groups=4),
    Conv2d(3, 2, (3, 2), padding=(2, 1), dilation=(2, 3)),
    ConvTranspose2d(2, 4, (3, 2), (2, 3), (1, 0), (1, 2)),
    ConvTranspose2d(4, 3, (2, 3), stride=(1, 2), dilation=(3, 2), bias=False),
]
"""With groups, dilated, transposed: their factors in a row are written out in a test of their own."""
LINEAR = [(Linear(6, 4), None), (Linear(3, 7, bias=False), None)]
PLAIN = [*LINEAR, *itertools.product(CONVOLUTIONS, FACTORISATIONS)]
LAYERS = [*PLAIN, *itertools.product(OTHERS, FACTORISATIONS)]


def adaptor_of(layer, factorisation, rank=2, bias="zero", conv_rank="elements"):
    if isinstance(layer, Linear):
        return LinearAdaptor.of(layer, rank, bias)
    return ConvAdaptor.of(layer, rank, bias, factorisation, conv_rank)


def mixture_of(adaptor, clusters, seed=0):
    """C adaptors with every value random, in float64."""
    random = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in adaptor.init(Stream(0, "shapes")).items()}
    return {n: torch.randn(clusters, *s, generator=random, dtype=torch.float64) for n, s in shapes.items()}


def input_of(layer, batch=3):
    shape = (layer.inputs,) if isinstance(layer, Linear) else (layer.inputs, 9, 8)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def weights_of(layer):
    return {name: tensor.double() for name, tensor in layer.init(Stream(0, "layer")).items()}


def test_every_kind_of_adaptor_is_tested_here():
    found = set()
    for name in plugins.names("adaptors"):
        module = importlib.import_module(f"floral.adaptors.{name}")
        found |= {v for v in vars(module).values() if isinstance(v, type) and hasattr(v, "merged")}
    of_layers = {type(adaptor_of(layer, method)) for layer, method in LAYERS}
    assert found == {NormAdaptor, EmbeddingAdaptor, *of_layers}


@pytest.mark.parametrize("clusters", [1, 3])
@pytest.mark.parametrize(("layer", "factorisation"), LAYERS)
def test_merged_equals_unmerged_equals_the_plain_sum(layer, factorisation, clusters):
    """Also with a bias and a route whose weights do not sum to 1 (the published floor)."""
    adaptor, weights, x = adaptor_of(layer, factorisation), weights_of(layer), input_of(layer)
    mixture = mixture_of(adaptor, clusters)
    route = torch.rand(clusters, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    merged = {name: weights[name] + change for name, change in adaptor.merged(mixture, route).items()}
    unmerged = layer(weights, x) + adaptor.unmerged(mixture, route, x)
    torch.testing.assert_close(layer({**weights, **merged}, x), unmerged, rtol=0, atol=1e-10)
    alone = torch.ones(1, dtype=torch.float64)
    plain = layer(weights, x)
    for c in range(clusters):
        plain = plain + route[c] * adaptor.unmerged({n: t[c : c + 1] for n, t in mixture.items()}, alone, x)
    torch.testing.assert_close(plain, unmerged, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("layer", "factorisation"), PLAIN)
def test_one_adaptor_is_its_two_factors_in_a_row(layer, factorisation):
    """B(A x) + b written out; a convolution's stride and padding belong to the factor that holds the kernel's axis."""
    adaptor, x = adaptor_of(layer, factorisation), input_of(layer)
    (down,), (up,), *rest = mixture_of(adaptor, 1).values()
    bias = rest[0][0] if rest else torch.zeros(layer.outputs, dtype=torch.float64)
    route = torch.ones(1, dtype=torch.float64)
    if isinstance(layer, Linear):
        expected = x @ down.T @ up.T + bias
    else:
        assert [max(a, b) for a, b in zip(down.shape[2:], up.shape[2:], strict=True)] == list(layer.kernel)
        # the composed kernel, entry by entry, padded from the outside
        height, width = layer.kernel
        kernel = torch.zeros(layer.outputs, layer.inputs, height, width, dtype=torch.float64)
        for h, w, r in itertools.product(range(height), range(width), range(down.shape[0])):
            a = down[r, :, min(h, down.shape[2] - 1), min(w, down.shape[3] - 1)]
            b = up[:, r, min(h, up.shape[2] - 1), min(w, up.shape[3] - 1)]
            kernel[:, :, h, w] += b[:, None] * a[None]
        (top, side) = layer.padding
        padded = F.pad(x, (side, side, top, top))
        windows = padded.unfold(2, height, layer.stride[0]).unfold(3, width, layer.stride[1])
        expected = torch.einsum("bihwuv,oiuv->bohw", windows, kernel) + bias.reshape(-1, 1, 1)
    torch.testing.assert_close(adaptor.unmerged(mixture_of(adaptor, 1), route, x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("layer", "factorisation"), list(itertools.product(OTHERS, FACTORISATIONS)))
def test_one_adaptor_is_the_blocks_of_a_whole_kernel(layer, factorisation):
    """K = B A of all channels, without what lies outside of the groups, in PyTorch's convolution without groups."""
    adaptor, x = adaptor_of(layer, factorisation), input_of(layer)
    mixture = mixture_of(adaptor, 1)
    kernel = torch.einsum("orhw,rihw->oihw", *expand_to_kernel(mixture["B"][0], mixture["A"][0]))
    for o, i in itertools.product(range(layer.outputs), range(layer.inputs)):
        if o * layer.groups // layer.outputs != i * layer.groups // layer.inputs:
            kernel[o, i] = 0
    bias = mixture["bias"][0] if "bias" in mixture else None
    if isinstance(layer, ConvTranspose2d):
        expected = F.conv_transpose2d(
            x, kernel.transpose(0, 1), bias, layer.stride, layer.padding, layer.output_padding, 1, layer.dilation
        )
    else:
        expected = F.conv2d(x, kernel, bias, layer.stride, layer.padding, layer.dilation)
    found = adaptor.unmerged(mixture, torch.ones(1, dtype=torch.float64), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_groups_share_the_budget_of_a_rank():
    """0.7·(8·8/4·9) = 100.8 and R·(8·3 + 8·3) = 96; each group's blocks have no more than 2·3 rows."""
    layer = Conv2d(8, 8, (3, 3), groups=4)
    assert adaptor_of(layer, "balanced_2d", rank=0.7).rank == int(0.7 * 8 * 8 / 4 * 9 / (2 * 8 * 3))
    assert adaptor_of(layer, "balanced_2d", rank="full").rank == 6


@pytest.mark.parametrize("variant", ["floral_1_centred", "floral_1_flexlora", "hetlora"])
def test_servers_that_take_whole_products_refuse_groups(variant):
    with pytest.raises(ConfigError, match="grouped has groups, so its weight holds only a part of the product"):
        simulate(variant, model="convolutions")


@pytest.mark.parametrize(("layer", "factorisation"), LAYERS)
def test_an_adaptor_starts_at_zero_unless_its_bias_is_the_published_one(layer, factorisation):
    x, route = input_of(layer), torch.ones(1, dtype=torch.float64)
    for bias, zero in (("zero", True), (None, True), ("uniform", not layer.bias)):
        adaptor = adaptor_of(layer, factorisation, bias=bias)
        start = {name: tensor[None].double() for name, tensor in adaptor.init(Stream(0, "adaptor")).items()}
        assert bool((adaptor.unmerged(start, route, x) == 0).all()) is zero
        assert bool((start["A"] == 0).any()) is False
        assert ("bias" in start) is (layer.bias and bias is not None)


def test_the_published_bias_start_is_uniform_over_its_fan_in():
    adaptor = LinearAdaptor.of(Linear(50, 4000), 4, "uniform")
    bias = adaptor.init(Stream(0, "adaptor"))["bias"]
    assert float(bias.abs().max()) == pytest.approx(0.5, rel=0.01)  # 1/sqrt(rank)
    assert float(bias.var()) == pytest.approx(0.25 / 3, rel=0.1)


@pytest.mark.parametrize("variant", ["floral_1", "local_adaptor"])
@pytest.mark.parametrize("model", [*NAMES, "convolutions"])
def test_training_merged_equals_training_unmerged(variant, model):
    applications = catalogue.method_file(catalogue.variant_index()[variant]).parameters["application"].choices
    first, *others = (
        trained(variant, model=model, params={"application": application, "rank": 2}) for application in applications
    )
    assert others
    for other in others:
        assert_equal_states(other, first, 1e-10)


@pytest.mark.parametrize("factorisation", FACTORISATIONS)
@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_every_factorisation_trains_on_both_backends(factorisation, backend):
    how = {"model": "cnn", "params": {"convolution": factorisation, "rank": 2}, "chunk": 3}
    assert_equal_states(trained("floral_1", backend=backend, **how), trained("floral_1", **how), 1e-10)


def test_convolutions_may_stay_without_adaptors():
    adaptors = attach(cnn.build((14, 14), 5, channels=(2, 3), hidden=4), rank=1, bias="zero", convolution="none")
    assert set(adaptors.by_layer) == {"hidden", "out"}
    with pytest.raises(Refused, match="no linear or convolution"):
        attach(Model(layers={}, forward=lambda call, x: x), rank=1, bias="zero")


# -------------------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("layer", [GroupNorm(4, 2), instance_norm(4), LayerNorm(4)])
def test_a_mixture_of_norm_adaptors_is_the_sum_of_the_adaptors_own_norms(layer):
    """Σ_c π_c (γ_c x̂ + β_c) beside γ x̂ + β; zero at the start."""
    adaptor = NormAdaptor.of(layer, own_statistics=True)
    assert not adaptor.own_statistics and not adaptor.statistics()
    weights, mixture = mixture_of(adaptor, 1), mixture_of(adaptor, 3, seed=1)
    base = {name: tensor[0] for name, tensor in weights.items()}
    route = torch.tensor([0.5, 0.2, 0.4], dtype=torch.float64)
    x = torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plain = layer(base, x) + sum(route[c] * layer({n: t[c] for n, t in mixture.items()}, x) for c in range(3))
    torch.testing.assert_close(layer(base, x, adaptor.merged(mixture, route)), plain, rtol=0, atol=1e-12)
    start = {name: tensor[None].double() for name, tensor in adaptor.init(Stream(0, "adaptor")).items()}
    assert torch.equal(layer(base, x, adaptor.merged(start, route[:1])), layer(base, x))


def running_of(count, seed):
    random = torch.Generator().manual_seed(seed)
    return {
        "mean": torch.randn(count, 3, generator=random, dtype=torch.float64),
        "variance": 0.5 + torch.rand(count, 3, generator=random, dtype=torch.float64),
    }


def test_a_plain_batch_norm_adaptor_serves_its_own_statistics():
    """γ_c (x - μ_c)/σ_c + β_c beside the layer, by PyTorch's batch norm; with the layer's statistics it is merged."""
    layer, route = BatchNorm(3), torch.tensor([0.7, 0.3], dtype=torch.float64)
    adaptor = NormAdaptor.of(layer, own_statistics=True)
    base, mixture = {n: t[0] for n, t in mixture_of(adaptor, 1).items()}, mixture_of(adaptor, 2, seed=1)
    running, own = {name: t[0] for name, t in running_of(1, 2).items()}, running_of(2, 3)
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found, _ = layer(base, running, x, None, adaptor.merged_in_evaluation(mixture, route, own, running))
    plain, _ = layer(base, running, x, None)
    for c in range(2):
        plain = plain + route[c] * F.batch_norm(
            x, own["mean"][c], own["variance"][c], mixture["weight"][c], mixture["bias"][c]
        )
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    alike = {name: tensor.expand(2, 3) for name, tensor in running.items()}
    assert_close(adaptor.merged_in_evaluation(mixture, route, alike, running), adaptor.merged(mixture, route), 1e-12)


NORM_CASES = [
    *(("floral_1", norm, model) for norm in ("plain", "reparameterised") for model in ("batch_norm", "vit")),
    ("floral_1", "plain", "resnet18"),
    ("floral_1_optimal", "plain", "batch_norm"),
    ("floral_1_argmin", "plain", "batch_norm"),
    ("local_adaptor", "plain", "batch_norm"),
]


@pytest.mark.parametrize("backend", ["vmap", "batched"])
@pytest.mark.parametrize(("variant", "norm", "model"), NORM_CASES)
def test_norm_adaptors_train_alike_on_every_backend(variant, norm, model, backend):
    how = {"model": model, "params": {"norm": norm}}
    loop = trained(variant, **how)
    assert any(bool((t != 0).any()) for name, t in loop.tensors().items() if "/adaptor" in name and "norm" in name)
    assert_equal_states(trained(variant, backend=backend, chunk=3, **how), loop, 1e-10)


@pytest.mark.parametrize("variant", ["floral_1", "floral_1_optimal"])
def test_with_one_cluster_plain_and_reparameterised_are_the_same(variant):
    """Its own statistics are then those of the layer."""
    plain, other = (
        trained(variant, model="batch_norm", clusters=1, params={"norm": norm}).values
        for norm in ("plain", "reparameterised")
    )
    own = {name: tensor[0] for name, tensor in plain["adaptor_statistics"].items()}
    assert_close(own, plain["statistics"], 1e-12)
    for group in other:
        assert_close(plain[group], other[group], 1e-12)


def test_own_statistics_are_averaged_within_the_cluster():
    """All of a round's clients together have the layer's, a mean of the clusters' own."""
    state = trained(
        "floral_1_optimal", rounds=1, model="batch_norm", participation=1.0, params={"norm": "plain"}
    ).values
    own = state["adaptor_statistics"]["norm.mean"]
    assert not torch.allclose(own[0], own[1])
    assert bool((torch.minimum(own[0], own[1]) <= state["statistics"]["norm.mean"]).all())
    assert bool((state["statistics"]["norm.mean"] <= torch.maximum(own[0], own[1])).all())


@pytest.mark.parametrize("variant", ["floral_1", "local_adaptor"])
def test_a_norm_that_the_model_does_not_have_cannot_be_adapted(variant):
    with pytest.raises(ConfigError, match="no normalisation layer that `norm: reparameterised` could adapt"):
        simulate(variant, model="mlp", params={"norm": "reparameterised"})


@pytest.mark.parametrize("variant", ["floral_1_flexlora", "floral_1_fedex"])
def test_servers_that_take_products_average_norms_as_they_are(variant):
    """What a mean of factors misses is nothing for a norm: after a round its adaptors are those of FLoRAL."""
    how = {"model": "batch_norm", "rounds": 1}
    params = {"norm": "reparameterised", "convolution": "in"}
    exact, plain = (trained(some, params=params, **how).values["adaptors"] for some in (variant, "floral_1"))
    for name in ("norm.weight", "norm.bias"):
        torch.testing.assert_close(exact[name], plain[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", [{"centred": True}, {"personal": True}, {"aggregation": "stacking"}])
def test_adaptors_with_statistics_of_their_own_are_never_added_to_the_base(option):
    with pytest.raises(ConfigError, match=r"adds adaptors to the base.*set `norm: reparameterised`"):
        simulate("floral_1", model="batch_norm", params={"norm": "plain", **option})
    assert simulate("floral_1", model="batch_norm", params={"norm": "reparameterised", **option})


def test_centred_norms_have_no_mean():
    state = trained("floral_1_centred", model="batch_norm", params={"norm": "reparameterised"})
    for name in ("norm.weight", "norm.bias"):
        tensor = state.values["adaptors"][name]
        assert bool((tensor != 0).any())
        torch.testing.assert_close(tensor.mean(0), torch.zeros_like(tensor[0]), rtol=0, atol=1e-12)


def test_every_normalisation_layer_gets_its_adaptor():
    adaptors = attach(vit.build((4, 4), 5, patch=2, features=4, heads=2, depth=1, hidden=5), rank=1, bias="zero")
    every = adaptors.with_norms("reparameterised").by_layer
    assert list(every) == [name for name in adaptors.model.layers if name != "position"]
    assert {n for n, a in every.items() if isinstance(a, NormAdaptor)} == {
        n for n, layer in adaptors.model.layers.items() if isinstance(layer, NORMS)
    }


# ---------------------------------------------------------------------------------------- preconditioners


@pytest.mark.parametrize("rank", [1, 3])
def test_the_linear_preconditioner_is_its_formula(rank):
    """gA ← (BᵀB + εI)⁻¹ gA and gB ← gB (AAᵀ + εI)⁻¹, ε = 1e-5, per cluster; the bias is unchanged."""
    adaptor = LinearAdaptor.of(Linear(5, 4), rank, "zero")
    mixture, gradients = mixture_of(adaptor, 2), mixture_of(adaptor, 2, seed=1)
    found = adaptor.precondition(gradients, mixture)
    for c in range(2):
        a, b = mixture["A"][c].numpy(), mixture["B"][c].numpy()
        left = np.linalg.inv(b.T @ b + 1e-5 * np.eye(rank)) @ gradients["A"][c].numpy()
        right = gradients["B"][c].numpy() @ np.linalg.inv(a @ a.T + 1e-5 * np.eye(rank))
        np.testing.assert_allclose(found["A"][c], left, rtol=1e-8)
        np.testing.assert_allclose(found["B"][c], right, rtol=1e-8)
    assert torch.equal(found["bias"], gradients["bias"])


def test_a_singular_gram_matrix_spoils_its_own_cluster_alone():
    gram = torch.diag(torch.tensor([1.0, 2.0, 3.0])).repeat(3, 1, 1)
    gram[1] = 1e12  # of rank 1, and the ridge is lost in single precision
    right = torch.rand(3, 3, 4)
    found = solve(gram, right)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()
    mapped = torch.func.vmap(solve)(gram[:, None], right[:, None])[:, 0]
    torch.testing.assert_close(mapped, found, equal_nan=True)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_the_official_convolution_preconditioner_is_the_published_formula(factorisation, rank):
    """gA/(‖G_B‖_F + ε) and gB/(‖G_A‖_F + ε), written as loops; G has products of equal kernel positions only."""
    adaptor = ConvAdaptor.of(Conv2d(4, 5, (3, 2)), rank, "zero", factorisation, "elements", "scalar")
    mixture, gradients = mixture_of(adaptor, 2), mixture_of(adaptor, 2, seed=1)
    preconditioned = adaptor.precondition(gradients, mixture)

    def norm(factor):  # [rank, channels, h, w]
        total = 0.0
        for r, s, h, w in np.ndindex(rank, rank, *factor.shape[2:]):
            total += sum(factor[r, channel, h, w] * factor[s, channel, h, w] for channel in range(factor.shape[1])) ** 2
        return total**0.5

    for c in range(2):
        norm_a, norm_b = norm(mixture["A"][c].numpy()), norm(mixture["B"][c].numpy().swapaxes(0, 1))
        np.testing.assert_allclose(preconditioned["A"][c], gradients["A"][c] / (norm_b + 1e-5), rtol=1e-12)
        np.testing.assert_allclose(preconditioned["B"][c], gradients["B"][c] / (norm_a + 1e-5), rtol=1e-12)
    assert torch.equal(preconditioned["bias"], gradients["bias"])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_the_convolution_preconditioner_inverts_the_metric_of_the_kernel(factorisation, rank, groups):
    """JᵀJ of the composed kernel in one factor, plus ε, times the preconditioned gradient is the gradient."""
    adaptor = ConvAdaptor.of(Conv2d(4, 6, (3, 2), groups=groups), rank, None, factorisation, "elements", "matrix")
    mixture, gradients = mixture_of(adaptor, 2), mixture_of(adaptor, 2, seed=1)
    preconditioned = adaptor.precondition(gradients, mixture)
    for c in range(2):
        factors = {name: mixture[name][c] for name in ("A", "B")}
        for name in ("A", "B"):

            def kernel(factor, name=name, factors=factors):
                one = {key: value[None] for key, value in (factors | {name: factor}).items()}
                return adaptor.merged(one, torch.ones(1, dtype=torch.float64))["weight"]

            size = factors[name].numel()
            jacobian = torch.func.jacrev(kernel)(factors[name]).reshape(-1, size)
            metric = jacobian.mT @ jacobian + 1e-5 * torch.eye(size, dtype=torch.float64)
            found = metric @ preconditioned[name][c].flatten()
            torch.testing.assert_close(found, gradients[name][c].flatten(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_preconditioner_of_a_1x1_convolution_is_that_of_a_linear_layer(rank):
    conv = ConvAdaptor.of(Conv2d(5, 4, (1, 1)), rank, "zero", "in", "elements", "matrix")
    linear = LinearAdaptor.of(Linear(5, 4), rank, "zero")
    mixture, gradients = mixture_of(linear, 2), mixture_of(linear, 2, seed=1)

    def as_kernels(params):
        return {name: value if name == "bias" else value[..., None, None] for name, value in params.items()}

    found = conv.precondition(as_kernels(gradients), as_kernels(mixture))
    expected = as_kernels(linear.precondition(gradients, mixture))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_preconditioned_steps_do_not_see_how_a_product_is_split():
    """Rescaling A by s and B by 1/s leaves the step of the product as it is, but for the ridge."""
    adaptor = LinearAdaptor.of(Linear(5, 4), 2, None)
    mixture, slope = mixture_of(adaptor, 1), mixture_of(adaptor, 1, seed=1)
    gradient = slope["B"] @ slope["A"]  # of the loss in the product

    def change(scale):
        a, b = mixture["A"] * scale, mixture["B"] / scale
        step = adaptor.precondition({"A": b.mT @ gradient, "B": gradient @ a.mT}, {"A": a, "B": b})
        return b @ step["A"] + step["B"] @ a

    torch.testing.assert_close(change(3.0), change(1.0), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("rank", "inputs", "outputs", "expected"),
    [
        (0.1, 100, 100, 5),  # 0.1·10⁴/200
        (0.01, 784, 200, 1),  # 1.59
        (0.01, 200, 10, 1),  # 0.095: never below 1
        (0.99, 4, 4, 1),  # 1.98 is cut off, not rounded
        (1, 784, 200, 1),
        (1.0, 784, 200, 1),  # rank 1, not 100 %
        (3, 784, 200, 3),
        (2.5, 784, 200, 2),
        (500, 784, 200, 200),  # no more than the smaller side
        ("full", 784, 200, 200),
        ("sqrt", 784, 200, 14),  # 14.1
        ("log", 784, 200, 8),  # log2(201) = 7.65
        ("log", 784, 1, 1),
        ("sqrt", 784, 1, 1),
    ],
)
def test_ranks_by_hand(rank, inputs, outputs, expected):
    assert resolve(rank, inputs, outputs) == resolve(rank, outputs, inputs) == expected


@pytest.mark.parametrize("rank", [0, -1, -0.5, "half", "0.1"])
def test_a_rank_that_means_nothing_is_refused(rank):
    with pytest.raises(Refused, match=r"`rank: .*"):
        resolve(rank, 4, 4)


def share(model, **adaptor):
    adaptors = attach(model, bias="zero", **adaptor)
    return adaptors, adaptors.size / model.size


def test_budgets_of_the_papers_models():
    """At 1 % every rank is 1: an adaptor has 0.88 % of MnistNN's parameters and 2.06 % of Cifar10CNN's."""
    for conv_rank in ("elements", "dimensions"):
        adaptors, mnist = share(mlp.build((28, 28), 10, hidden=200), rank=0.01, conv_rank=conv_rank)
        assert (adaptors.size, round(100 * mnist, 2)) == (1404, 0.88)
        adaptors, cifar = share(cnn.build((32, 32, 3), 10), rank=0.01, conv_rank=conv_rank)
        assert (adaptors.size, round(100 * cifar, 2)) == (1795, 2.06)
    _, synthetic = share(linear.build((10,), 3), rank=0.01)
    assert round(100 * synthetic) == 48


def test_the_published_convolution_rank_counts_dimensions():
    """Cifar10CNN at 10 %: 2·Cin and 2·Cout in the formula give ranks 1, 4, 6, 1 and 9.3 %; elements give other ones."""
    model = cnn.build((32, 32, 3), 10)
    adaptors, official = share(model, rank=0.1, conv_rank="dimensions")
    assert [a.rank for a in adaptors.by_layer.values()] == [1, 4, 6, 1]
    assert round(100 * official, 1) == 9.3
    adaptors, _ = share(model, rank=0.1, conv_rank="elements")
    # conv1: 0.1·2400/(15 + 160) = 1.37; conv2: 0.1·18432/(96 + 192) = 6.4
    assert [a.rank for a in adaptors.by_layer.values()] == [1, 6, 6, 1]


def test_the_start_of_a_has_the_published_variance():
    """A ~ U(±sqrt(6/fan_in)): variance 2/fan_in."""
    down = LinearAdaptor.of(Linear(1000, 400), 40, None).init(Stream(0, "adaptor"))["A"]
    assert float(down.var()) == pytest.approx(2 / 1000, rel=0.02)
    assert float(down.abs().max()) <= math.sqrt(6 / 1000)

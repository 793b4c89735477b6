"""The scale alpha/rank of adaptors, and dropout of their inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from federations import CLASSES, FIRST, assert_close, assert_equal_states, simulate, trained, view_of

from floral.adaptors.aggregation import svd_factors
from floral.adaptors.attach import Adaptors, attach, noise_name, with_dropout
from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.embedding import EmbeddingAdaptor
from floral.adaptors.linear import LinearAdaptor
from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.core.spec import Refused, ServerView
from floral.core.streams import Stream
from floral.models import cnn, mlp
from floral.nn.layers import Conv2d, ConvTranspose2d, Embedding, Linear

LORA = [variant for method, variant in FIRST.items() if "dropout" in catalogue.method_file(method).parameters]
"""A variant of each method with the keys `alpha`, `dropout` and `start`."""
CHANGED: dict[str, Any] = {"alpha": 3, "dropout": 0.3, "start": "gaussian", "rank": 2}


@pytest.mark.parametrize(
    "layer", [Linear(4, 3), Conv2d(4, 3, (3, 3)), ConvTranspose2d(4, 3, (3, 3)), Embedding(4, 3)], ids=lambda x: type(x)
)
def test_the_scale_multiplies_all_that_an_adaptor_adds(layer: Any) -> None:
    kinds: dict[Any, Any] = {
        Linear: lambda alpha: LinearAdaptor.of(layer, 2, "zero", alpha),
        Embedding: lambda alpha: EmbeddingAdaptor.of(layer, 2, alpha),
    }
    of = kinds.get(type(layer), lambda alpha: ConvAdaptor.of(layer, 2, "zero", "balanced_2d", "elements", alpha=alpha))
    plain, scaled = of("rank"), of(6)
    assert (plain.scale, scaled.scale) == (1, 3)
    random = torch.Generator().manual_seed(0)
    mixture = {n: torch.randn(2, *t.shape, generator=random) for n, t in plain.init(Stream(0, "a")).items()}
    route, x = torch.tensor([0.3, 0.7]), torch.rand(5, 4, *((6, 6) if isinstance(plain, ConvAdaptor) else ()))
    assert_close(scaled.merged(mixture, route), {n: 3 * t for n, t in plain.merged(mixture, route).items()}, 1e-5)
    torch.testing.assert_close(scaled.unmerged(mixture, route, x), 3 * plain.unmerged(mixture, route, x))


@pytest.mark.parametrize(("rank", "merges"), [(1, False), (4, True)])
def test_adaptors_of_a_frozen_layer_are_merged_only_if_the_gradient_of_its_weight_pays(rank: int, merges: bool) -> None:
    """Of 100 samples: 256 rank multiply-adds to merge, 3,200 rank to apply separately, 25,600 / 3 for the gradient."""
    trained = mlp.build((4, 4), 5, hidden=16)
    frozen = trained.frozen(["hidden.weight"], Stream(0, "model"))
    shape = torch.Size([100, 16])
    assert attach(trained, rank=rank, bias=None).merges("hidden", shape, clusters=1)
    assert attach(frozen, rank=rank, bias=None).merges("hidden", shape, clusters=1) == merges


def test_an_svd_gives_the_factors_of_the_mean_product_before_it_is_scaled() -> None:
    model = cnn.build((14, 14), 5, channels=(2, 3), hidden=4)
    plain, scaled = (attach(model, rank=2, bias=None, convolution="in", alpha=alpha) for alpha in ("rank", 10))
    clients = {n: torch.randn(3, *t.shape, generator=torch.Generator().manual_seed(1)) for n, t in start(plain).items()}
    weight = torch.tensor([0.2, 0.3, 0.5])
    factors = [svd_factors(adaptors, clients, weight, start(plain)) for adaptors in (plain, scaled)]
    assert_close(factors[0], factors[1], 1e-4)


def start(adaptors: Adaptors) -> dict[str, torch.Tensor]:
    return adaptors.init(Stream(0, "adaptors"))


def test_lora_fair_corrects_the_product_before_it_is_scaled() -> None:
    corrected = []
    for alpha in ("rank", 10):
        method = simulate("lora_fair", params={"rank": 2, "alpha": alpha, "base": "joint", "bias": False}).method
        random = torch.Generator().manual_seed(0)
        mean = {n: torch.randn(t.shape, generator=random).double() for n, t in method.groups["adaptor"].init().items()}
        size = sum(t.numel() for t in mean.values())
        sent: Any = type("Sent", (), {"vectors": torch.randn(3, size, generator=random).double()})
        sent.share = torch.tensor([0.2, 0.3, 0.5])
        view = {"adaptor": mean}
        served = ServerView(round=1, before=view, means=view, after=view, client_vectors=sent)
        assert method.server.update is not None
        corrected.append(method.server.update(served)["adaptor"])
    assert_close(corrected[0], corrected[1], 1e-9)


@pytest.mark.parametrize("variant", LORA)
def test_every_method_trains_with_dropout_equally_on_all_backends(variant: str) -> None:
    how: dict[str, Any] = {"params": CHANGED | ({"base": "joint"} if has_base(variant) else {}), "rounds": 1}
    loop = trained(variant, **how)
    for backend in ("vmap", "batched") if variant == "floral_1" else ("vmap",):
        assert_equal_states(trained(variant, backend=backend, chunk=3, **how), loop, 1e-9)
    without = trained(variant, **{**how, "params": {**how["params"], "dropout": 0.0}})
    assert any(not torch.equal(t, without.tensors()[name]) for name, t in loop.tensors().items())


def has_base(variant: str) -> bool:
    return "base" in catalogue.variant(variant).params


def test_dropout_leaves_the_layer_itself_and_predictions_unchanged() -> None:
    """If all entries are dropped, the layer remains. If none is, the adaptor is divided by 1 - dropout."""
    simulation = simulate("fedit", model="mlp", params={**CHANGED, "bias": False, "base": "joint"})
    method, state = simulation.method, simulation.start()
    random = torch.Generator().manual_seed(0)
    factors = {n: torch.randn(t.shape, generator=random).double() for n, t in state.values["adaptor"].items()}
    view = {**state.values, "adaptor": factors}
    base = {**view, "adaptor": {n: torch.zeros_like(t) for n, t in factors.items()}}
    x, mask = torch.rand(3, 4, 4).double(), torch.ones(3)
    all_dropped, none_dropped = (
        {name: torch.full((3, *map(int, shape[1:])), value) for name, shape in method.noise.items()}
        for value in (0.0, 0.99)
    )
    torch.testing.assert_close(method.predict(view, x, all_dropped, mask)[0], method.predict(base, x, None, None)[0])
    scaled = {n: t / (1 - CHANGED["dropout"]) if n.endswith(".B") else t for n, t in factors.items()}
    torch.testing.assert_close(
        method.predict(view, x, none_dropped, mask)[0],
        method.predict({**view, "adaptor": scaled}, x, None, None)[0],
    )
    assert set(method.noise) == {noise_name(layer) for layer in ("hidden", "out")}


def test_dropout_that_cannot_be_applied_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`dropout: 0\.3` needs adaptors .* `application` is merged; set"):
        simulate("fedit", params={"dropout": 0.3, "application": "merged"})
    with pytest.raises(ConfigError, match=r"`personal: true` merges the private adaptor .*; set `dropout: 0`"):
        simulate("floral_1", params={"dropout": 0.3, "personal": True})
    with pytest.raises(Refused, match=r"`alpha: -1` is not positive; set a positive number, or `rank`"):
        LinearAdaptor.of(Linear(3, 4), 2, None, -1)

    adaptors = attach(cnn.build((14, 14), 5, channels=(2, 3), hidden=4), rank=2, bias=None)
    with pytest.raises(Refused, match=r"module that mixes the samples of a batch; set `dropout: 0`"):
        with_dropout(replace(adaptors, model=replace(adaptors.model, mixes=True)), 0.3, (14, 14))


WEIGHED_BY_SAMPLE = {"fedalt", "feddpa", "fedlease", "perada"}
"""Variants that weigh adaptors for each sample; PerAda also changes norm layers."""
OTHERS = ("floral_1_optimal", "floral_1_per_layer", "floral_1_argmin", "floral_1_personal")


@pytest.mark.parametrize("variant", [*LORA, *OTHERS])
def test_the_exported_base_and_adaptor_give_the_predictions(variant: str) -> None:
    params = {"rank": 2, "alpha": 3} | ({"base": "joint"} if has_base(variant) else {})
    simulation = simulate(variant, model="mlp", params=params)
    method, state = simulation.method, simulation.start()
    assert (method.adapted is None) == (variant in WEIGHED_BY_SAMPLE)
    if method.adapted is None:
        return
    random = torch.Generator().manual_seed(0)
    for values in state.values.values():
        values.update({n: t + 0.3 * torch.randn(t.shape, generator=random) for n, t in values.items()})
    view, x = view_of(simulation, state, 1), torch.rand(3, 4, 4).double()
    base, adaptors = method.adapted(view)
    change = {f"{layer}.weight": params["B"] @ params["A"] for layer, params in adaptors.items()}
    change |= {f"{layer}.bias": params["bias"] for layer, params in adaptors.items() if "bias" in params}
    model = mlp.build((4, 4), CLASSES, hidden=5)
    merged, _ = model({n: t + change.get(n, 0) for n, t in base.items()}, {}, x, None, None)
    torch.testing.assert_close(merged, method.predict(view, x, None, None)[0])

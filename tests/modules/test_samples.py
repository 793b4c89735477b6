"""The layers of a module may get their samples on any axis. Methods that weigh adaptors for each sample follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federations import CLASSES, assert_close, make_data, simulate, trained, view_of
from torch import Tensor

from floral.config.reading import ConfigError
from floral.core.spec import Batch
from floral.models import module

BUILD = f"{Path(__file__).with_name('plain.py')}:tokens"
DROPPED = {"fedit": {"dropout": 0.3}, "fedalt": {"dropout": 0.3}}
"""Variants with dropout of the adaptors' inputs, which have random numbers for each sample."""
WHOLE_NUMBERS = ("assigned", "choice", "used")
"""Groups of parameters that are no real numbers."""


def tokens(layout: str, **keys: Any) -> dict[str, Any]:
    return {"kind": "module", "build": BUILD, "arguments": {"layout": layout}, **keys}


def computed(variant: str, layout: str) -> list[Tensor]:
    """What a client computes from 7 samples, of which one is padding, with random values of all parameters."""
    base = {} if variant == "flow" else {"base": "joint"}
    simulation = simulate(variant, model=tokens(layout), params=base | DROPPED.get(variant, {}))
    method, state, random = simulation.method, simulation.start(), torch.Generator().manual_seed(0)
    for group, values in state.values.items():
        if group not in WHOLE_NUMBERS:
            values.update({n: t + 0.3 * torch.randn(t.shape, generator=random) for n, t in values.items()})
    view = {**view_of(simulation, state, 1), "used": {"experts": torch.tensor([2.0])}}
    noise = {
        name: torch.rand(7, *map(int, sides[1:]), generator=random).double() for name, sides in method.noise.items()
    }
    x, y, mask = torch.rand(7, 4, 4, generator=random).double(), torch.arange(7) % CLASSES, torch.ones(7)
    batch = Batch(x, y, torch.cat([mask[1:], torch.zeros(1)]))
    results = [method.predict(view, x, drawn, batch.mask)[0] for drawn in (None, noise)]
    if method.loss is not None:
        results.append(method.loss(view, view, batch, noise)[0])
    if method.after_training is not None:
        received = {group: {n: t + 1 for n, t in values.items()} for group, values in view.items()}
        results += method.after_training(view, received, batch)["sent"].values()
    return results


@pytest.mark.parametrize(
    ("variant", "layouts"),
    [
        *((variant, ("samples second", "rows")) for variant in ("flow", "feddpa", "fedit")),
        *((variant, ("samples second", "rows", "grid")) for variant in ("fedalt", "fedamole", "fedlease")),
    ],
)
def test_a_method_follows_the_samples_through_a_module(variant: str, layouts: tuple[str, ...]) -> None:
    """The same network with other shapes inside gives the same numbers."""
    expected = computed(variant, "tokens")
    for layout in layouts:
        for result, number in zip(computed(variant, layout), expected, strict=True):
            torch.testing.assert_close(result, number, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("backend", "layout"), [("vmap", "samples second"), ("batched", "rows")])
def test_clients_together_follow_the_samples_too(backend: str, layout: str) -> None:
    how: dict[str, Any] = {"data": make_data((7, 5), shape=(4, 4)), "rounds": 2}
    expected = trained("flow", model=tokens("tokens"), **how)
    state = trained("flow", model=tokens(layout), backend=backend, **how)
    assert_close(state.tensors(), expected.tensors(), 1e-9)


def test_the_axis_of_samples_is_an_observation() -> None:
    def axes(layout: str) -> list[int | None]:
        built = module.build((4, 4), CLASSES, build=BUILD, arguments={"layout": layout})
        return [built.sample_axes[name] for name in ("inner", "norm", "attention.in_proj", "out")]

    assert axes("samples second") == [1, 1, 1, 0] and axes("rows") == [0, 0, 0, 0]
    for moved in ("reversed", "tokens first", "positions"):
        assert axes(moved) == [None, None, 0, 0]


@pytest.mark.parametrize(
    ("variant", "remedy", "keys"),
    [
        ("flow", "name this layer in `freeze`", {"freeze": ["inner", "norm"]}),
        ("feddpa", "leave this layer out of `adapt`", {"adapt": ["out", "attention.*"]}),
        ("fedamole", "leave this layer out of `adapt`", {"adapt": ["out", "attention.*"]}),
    ],
)
def test_a_layer_in_which_samples_have_another_order_is_named(variant: str, remedy: str, keys: dict) -> None:
    with pytest.raises(ConfigError, match=f"no axis of the inputs of inner has the samples.* order; .*{remedy}"):
        simulate(variant, model=tokens("tokens first"))
    simulate(variant, model=tokens("tokens first", **keys))


def test_a_module_that_mixes_samples_is_refused_by_methods_that_weigh_them() -> None:
    special = {"kind": "module", "build": BUILD.replace("tokens", "special"), "arguments": {"does": "mixes"}}
    with pytest.raises(ConfigError, match="weighs parameters for each sample, but the module mixes the samples"):
        simulate("feddpa", model=special)

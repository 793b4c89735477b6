"""A model in PyTorch's layers trains as the same model in declared layers, with every method.

The contract tests train the model `module` with every backend.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import federations
import pytest
import torch
from federations import (
    ARGUMENTS,
    CLASSES,
    FIRST,
    OF_EACH_KIND,
    SHAPES,
    assert_close,
    buildable,
    served,
    simulate,
    train,
)

from floral.models import module
from floral.nn.layers import Conv2d
from floral.nn.model import Model

PLAIN = str(Path(__file__).with_name("plain.py"))
MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", ARGUMENTS["mlp"]),
    "batch_norm": ("mlp", ARGUMENTS["batch_norm"]),
    "cnn": ("cnn", {}),
    "resnet18": ("resnet18", ARGUMENTS["resnet18"]),
}
"""Declared model → function of plain.py, and its arguments."""
EXACT = 1e-6
WEIGH_SAMPLES = ("fedamole", "feddpa", "flow")
"""Methods with weights of their own for each sample."""


def wrapped(model: str, width: float = 1.0) -> Model:
    """The declared model as a wrapped module. Layers have the same names, so they draw the same initial values."""
    function, arguments = MODULES[model]
    shape = SHAPES.get(model, (4, 4))
    built = module.build(shape, CLASSES, build=f"{PLAIN}:{function}", arguments=arguments, width=width)
    assert built.sequential is None and not built.draws and not built.mixes
    layers = dict(built.layers)
    if model == "resnet18":
        convolutions = {name: layer for name, layer in layers.items() if isinstance(layer, Conv2d)}
        layers |= {name: replace(layer, start="normal_fan_out") for name, layer in convolutions.items()}
    return replace(built, start=None, layers=layers)


@pytest.fixture
def with_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods get the wrapped module where they ask for the declared model."""
    for name in MODULES:
        monkeypatch.setitem(federations.OWN, name, lambda width=1.0, name=name: wrapped(name, width))


def models_of(variant: str) -> list[str]:
    """The models on which a method is compared: OF_EACH_KIND on all, other methods on an MLP with batch norm or, if
    they refuse it, without. WEIGH_SAMPLES are also compared on convolutions."""
    models = [model for model in MODULES if buildable(variant, model)]
    if variant in OF_EACH_KIND:
        return models
    first = next(model for model in ("batch_norm", "mlp", *models) if model in models)
    return [first, "cnn"] if variant in WEIGH_SAMPLES else [first]


CASES = [(variant, model) for variant in FIRST.values() for model in MODULES if model in models_of(variant)]


@pytest.mark.parametrize(("variant", "model"), CASES)
def test_a_wrapped_module_trains_as_the_declared_model(
    variant: str, model: str, request: pytest.FixtureRequest
) -> None:
    declared = outcome(variant, model)
    request.getfixturevalue("with_modules")
    assert_close(outcome(variant, model), declared, EXACT)


def outcome(variant: str, model: str) -> dict[str, torch.Tensor]:
    """All values after three rounds, and the predictions of each client."""
    simulation = simulate(variant, model=model)
    state = train(simulation, 3)
    predictions = {f"predictions/{client}": t for client, t in enumerate(served(simulation, state))}
    return {**state.tensors(), **predictions}

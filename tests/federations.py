"""Small federations in memory: clients of unequal size, two or three clusters, tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from floral.check import federation
from floral.check.contracts import check_equal as assert_close
from floral.check.contracts import check_equal_states as assert_equal_states
from floral.check.federation import CLASSES, CPU, SIZES, make_data, served, train, view_of
from floral.config import catalogue, plugins
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.data.federation import Federation
from floral.engine.simulate import Simulation
from floral.engine.state import State
from floral.nn.layers import Conv2d, ConvTranspose2d, Dropout, Linear, scaled_units
from floral.nn.model import Model
from floral.stages.check_model import example_arguments

__all__ = [
    "CLASSES", "CPU", "SIZES", "assert_close", "assert_equal_states", "make_data", "served", "train", "view_of",
]  # fmt: skip

torch.set_num_threads(1)  # With tiny tensors threads only cost time.
torch.set_flush_denormal(True)  # as the train stage does

SHAPES: Mapping[str, tuple[int, ...]] = {
    "cnn": (14, 14), "vgg8": (32, 32), "resnet18": (8, 8), "lstm": (3,), "tied": (3,), "transformer": (3,),
}  # fmt: skip
TEXT = {"lstm", "tied", "transformer"}
"""Models whose inputs are token ids."""
ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "mlp": {"hidden": 5},
    "cnn": {"channels": (2, 3), "hidden": 4},
    "vgg8": {"channels": (2, 3, 4, 5, 6), "hidden": 4},
    "resnet18": {"channels": (2, 2, 3, 4), "groups": 1},
    "vit": {"patch": 2, "features": 4, "heads": 2, "depth": 1, "hidden": 5, "dropout": 0.3},
    "lstm": {"features": 2, "hidden": 3, "adapt_embedding": True},
    "tied": {"features": 2, "hidden": 3, "depth": 1, "tied": True},
    "transformer": {"features": 4, "heads": 2, "depth": 1, "hidden": 5},
    "batch_norm": {"hidden": 5, "batch_norm": True},
    "dropout": {"hidden": 5},
    "convolutions": {"hidden": 5},
    "module": {"build": f"{Path(__file__).parent / 'modules' / 'plain.py'}:small"},
}
"""Arguments for a tiny size of each model. A model without a row here gets values where it has no defaults."""
KINDS = {"batch_norm": "mlp", "dropout": "mlp", "convolutions": "mlp", "tied": "lstm"}
PRETRAINED = ("huggingface", "bert", "efficientnet_lite0")
"""Models for pretrained weights (tests/modules/test_huggingface.py, tests/pretrained)."""
NAMES = [name for name in plugins.names("models") if name not in PRETRAINED]
"""Every file of floral/models except those of PRETRAINED."""
MODELS = [*NAMES, "batch_norm", "dropout", "convolutions"]
"""All of NAMES, and models with running statistics, with noise per sample, and with grouped, dilated and
transposed convolutions."""
DROPPING = ("dropout", "vgg8", "vit")
"""Models with dropout."""
VARIANTS = list(catalogue.variant_index())
NOT_TUNED = ("methods_full", "lora")
"""Suites without runs, because their searches take hours or days."""


def with_dropout(width: float = 1.0) -> Model:
    """4×4 → 5·width → dropout → CLASSES."""
    hidden = scaled_units(5, width)

    def forward(call, x):
        return call("out", call("dropped", torch.relu(call("hidden", x.flatten(1)))))

    layers = {"hidden": Linear(16, hidden), "dropped": Dropout((hidden,), 0.3), "out": Linear(hidden, CLASSES)}
    return Model(layers=layers, forward=forward)


def with_convolutions(width: float = 1.0) -> Model:
    """4×4 → conv → grouped and dilated conv → transposed conv → CLASSES. No file of floral/models has such layers."""
    channels = 2 * scaled_units(2, width)

    def forward(call, x):
        x = call("wide", torch.relu(call("grouped", torch.relu(call("conv", x.unsqueeze(1))))))
        return call("out", torch.relu(x).flatten(1))

    layers = {
        "conv": Conv2d(1, channels, (3, 3), padding=(1, 1)),
        "grouped": Conv2d(channels, channels, (3, 3), padding=(1, 1), dilation=(2, 2), groups=2),
        "wide": ConvTranspose2d(channels, 2, (3, 3), stride=(3, 3)),
        "out": Linear(2 * 6 * 6, CLASSES),
    }
    return Model(layers=layers, forward=forward)


OWN = {"dropout": with_dropout, "convolutions": with_convolutions}
"""Models that exist in the tests only."""


def keys_of(model: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a model in YAML. `model` is a name of MODELS, or these keys."""
    if not isinstance(model, str):
        return model
    name = KINDS.get(model, model)
    return {"kind": name, **(ARGUMENTS[model] if model in ARGUMENTS else example_arguments(name))}


def make_run(variant: str = "fedavg", *, model: str | Mapping[str, Any] = "mlp", **values: Any) -> Run:
    """A run on a task that exists in the tests only. `model` is a name of MODELS, or the keys of a model in YAML."""
    return federation.make_run(variant, model=keys_of(model), **values)


def simulate(
    variant: str = "fedavg",
    *,
    model: str | Mapping[str, Any] | None = None,
    data: Federation | None = None,
    **how: Any,
) -> Simulation:
    """The simulation of a variant, assembled as the train stage does.

    The default model is the first that the method supports. `how` has arguments of `federation.simulate`.
    """
    model = model or fitting(variant)
    name = model if isinstance(model, str) else "module"
    if data is None:
        data = make_data(shape=SHAPES.get(name, (4, 4)), clusters=how.get("clusters", 2), text=name in TEXT)
    keys = keys_of(model)
    return federation.simulate(variant, data, model=keys, build_model=OWN.get(name), text=name in TEXT, **how)


def trained(variant: str = "fedavg", rounds: int = 3, **how: Any) -> State:
    return train(simulate(variant, **how), rounds)


def trained_base(variant: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parameters, with `base: joint` unless they state the base: all rounds then train the adaptors, too."""
    joint = {"base": "joint"} if "base" in catalogue.variant(variant).params else {}
    return joint | dict(params or {})


@cache
def fitting(variant: str) -> str:
    """The first model that the variant supports; MLP and MLP with batch norm come first."""
    return next((model for model in ("mlp", "batch_norm", *MODELS) if buildable(variant, model)), "mlp")


@cache
def buildable(variant: str, model: str) -> bool:
    """Whether the method supports the model. test_declarations.py checks the reasons of refusals."""
    try:
        simulate(variant, model=model)
    except ConfigError:
        return False
    return True


FIRST = {name: next(iter(catalogue.method_file(name).variants)) for name in plugins.names("methods")}
"""The variant of each method that is tested on all models. Its other variants differ by parameters only."""
METHODS = [variant for variant in VARIANTS if variant in FIRST.values() or variant.startswith("floral")]
"""FIRST, and all variants of FLoRAL. The others differ from them by parameters that other tests cover."""


DEEP = ("resnet18", "vit", "convolutions", "module")
"""Models that take seconds to record, or have rare layers, or differ from declared models in the forward pass alone.

Only OF_EACH_KIND is tested on them."""
SHALLOW = ("linear", "cnn", "batch_norm", "dropout", "lstm")
"""The models of tests that prove a limit case of a method: no hidden layer, convolutions, running statistics, noise,
and text. The engine is tested on all models (`all_models`)."""
RECORDED = ("fedavg", "floral_1")
"""The variants whose steps are recorded on all models. See the fixture `without_recording`."""
OF_EACH_KIND = ("fedavg", "ditto", "ensemble", "floral_1", "local_adaptor", "private_norm")
"""The variants that are tested on all models."""
DIFFERENT = ("cnn", "batch_norm")
"""Models that every method is tested on: convolutions and running statistics. `noisy` has noise."""


@cache
def noisy(variant: str) -> str:
    """The small model that each variant is tested on: an MLP with dropout, or `fitting` if the method refuses it."""
    return "dropout" if buildable(variant, "dropout") else fitting(variant)


def all_models() -> list[tuple[str, str]]:
    """Pairs (variant, model): OF_EACH_KIND on all models that they support.

    `local_adaptor` has the adaptors of floral_1 and the personal values of ditto, so it is not trained on DEEP.
    """
    pairs = [(variant, model) for variant in OF_EACH_KIND for model in MODELS if buildable(variant, model)]
    return [(variant, model) for variant, model in pairs if variant != "local_adaptor" or model not in DEEP]

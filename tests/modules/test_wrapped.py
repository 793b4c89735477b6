"""A model in PyTorch's layers trains as the same model in declared layers, with every variant of every method.

The contract tests train the model `module` with every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import CLASSES, VARIANTS, assert_close, make_data, served, train

from floral.check import federation
from floral.config import plugins
from floral.config.reading import ConfigError
from floral.data.federation import Federation
from floral.engine.simulate import Simulation
from floral.models import module, resnet18
from floral.nn.layers import Conv2d
from floral.nn.model import Model

PLAIN = str(Path(__file__).with_name("plain.py"))
EXACT = 1e-6
ROUNDS, BATCH = 3, 4
SAMPLES = (4, 1)
"""Training samples of the two clients. Each takes a step in each round, one of them with a short batch. The first has a
held-out sample, without which some methods train a part of their model only."""
TWO_STEPS = "fedavg", "fedavg_client_momentum", "fedavg_client_adam", "fedalt", "floral_1", "floral_1_personal"
"""Variants that are compared where a client takes two steps in a round: local optimisers remember the first, and
gates do not move before the second."""
SAMPLES_OF: dict[str, tuple[int, ...]] = {
    "fedlease": (6, 1, 1), "fedlease_trained_base": (6, 1, 1), **dict.fromkeys(TWO_STEPS, (6, 1))
}  # fmt: skip
"""Variant → training samples of the clients. FedLEASE finds no clusters among two clients."""
STAGES: dict[str, dict[str, float]] = {
    "fedlease": {"warmup": 0.3},
    "hilora": {"warmup": 0.01, "root": 0.34, "cluster": 0.34},
    "hilora_trained_base": {"root": 0.34, "cluster": 0.34},
    "pfl_moe": {"after": 0.34},
    "rolora": {"warmup": 0.3},
}
"""Variant → shares of the rounds with which three rounds have a round of each stage."""


@dataclass(frozen=True)
class Network:
    """A model that is declared in floral/models, and written in PyTorch's layers in plain.py."""

    kind: str
    """Name of the declared model and of the function of plain.py."""
    shape: tuple[int, ...]
    arguments: dict[str, Any] = field(hash=False)

    def declared(self, width: float) -> Model:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resnet18, "BLOCKS", 1)  # in each stage
            return plugins.builder("models", self.kind)(self.shape, CLASSES, **self.arguments, width=width)

    def wrapped(self, width: float) -> Model:
        """Return the wrapped module. Its layers have the names of the declared ones, so they draw the same values."""
        build = f"{PLAIN}:{self.kind}"
        built = module.build(self.shape, CLASSES, build=build, arguments=self.arguments, width=width)
        assert built.sequential is None and not built.draws and not built.mixes
        layers = dict(built.layers)
        if self.kind == "resnet18":
            convolutions = {name: layer for name, layer in layers.items() if isinstance(layer, Conv2d)}
            layers |= {name: replace(layer, start="normal_fan_out") for name, layer in convolutions.items()}
        return replace(built, start=None, layers=layers)


NETWORKS = {
    "mlp": Network("mlp", (4, 4), {"hidden": 5, "batch_norm": True}),
    "cnn": Network("cnn", (14, 14), {"channels": (2, 3), "hidden": 4, "batch_norm": True}),
    "resnet18": Network("resnet18", (8, 8), {"channels": (2, 4), "groups": 2}),
}
WITHOUT_BATCH_NORM = {
    name: replace(network, arguments={**network.arguments, "batch_norm": False})
    for name, network in NETWORKS.items()
    if "batch_norm" in network.arguments
}
REFUSE_BATCH_NORM = {"pfedlora_warmup": "the model has running statistics, and those of the warm-up would not fit"}
"""Variant → why it refuses batch norm. It is compared without."""
NEED_WIDTH = {"ensemble_small", "fedavg_wide", "pfedmoe"}
"""Variants that build the model with another width than that of the task."""


FIRST_WIDTH: dict[tuple[Network, int], float] = {}
"""Network and number of parameters → the first width that gives it so many."""


@cache
def data_of(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Federation:
    return make_data(sizes, shape=shape)


@cache
def declared(network: Network, width: float) -> Model:
    return network.declared(width)


@cache
def wrapped(network: Network, width: float) -> Model:
    """Return the wrapped module. All widths that give the same sizes share it, because a method may search a width."""
    first = FIRST_WIDTH.setdefault((network, declared(network, width).size), width)
    return network.wrapped(width) if width == first else wrapped(network, first)


def simulate(
    variant: str, network: Network, build: Callable[[Network, float], Model], widths: set[float]
) -> Simulation:
    """Return the simulation of a variant, and add to `widths` those with which it builds its models."""

    def build_model(width: float = 1.0) -> Model:
        widths.add(width)
        return build(network, width)

    data = data_of(network.shape, SAMPLES_OF.get(variant, SAMPLES))
    keys = {"kind": "mlp", "hidden": 5}  # `build_model` is used instead
    how = {"rounds": ROUNDS, "batch": BATCH, "participation": 1.0, "params": STAGES.get(variant)}
    return federation.simulate(variant, data, model=keys, build_model=build_model, **how)


def outcome(variant: str, network: Network, build: Callable[[Network, float], Model]) -> dict[str, torch.Tensor]:
    """All values after three rounds, and the predictions of each client."""
    widths: set[float] = set()
    simulation = simulate(variant, network, build, widths)
    assert (widths > {1.0}) == (variant in NEED_WIDTH)
    state = train(simulation, ROUNDS)
    predictions = {f"predictions/{client}": t for client, t in enumerate(served(simulation, state))}
    return {**state.tensors(), **predictions}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_wrapped_module_trains_as_the_declared_model(variant: str, name: str) -> None:
    network = NETWORKS[name]
    if variant in REFUSE_BATCH_NORM and name in WITHOUT_BATCH_NORM:
        for build in (declared, wrapped):
            with pytest.raises(ConfigError, match=REFUSE_BATCH_NORM[variant]):
                simulate(variant, network, build, set())
        network = WITHOUT_BATCH_NORM[name]
    assert_close(outcome(variant, network, wrapped), outcome(variant, network, declared), EXACT)

"""Modules of real packages, which nobody prepared for this project, are trained by every method."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from federations import CLASSES, FIRST, OF_EACH_KIND, assert_close, make_data, simulate, train
from safetensors import safe_open
from skips import package

from floral.config.reading import ConfigError
from floral.engine.simulate import Simulation
from floral.engine.state import State
from floral.models import module
from floral.nn.model import Model

PLAIN = Path(__file__).with_name("plain.py")
WEIGHTS = Path(os.environ.get("FLORAL_DATA", "no folder")) / "efficientnet_lite0" / "model.safetensors"
SIZES = (6, 3, 5)
PAIR = (6, 3)
"""Training samples of two clients, for tests of every method."""
TOKENS = 6


@pytest.fixture(autouse=True)
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests of a module share its model, which never changes."""
    original = module.build

    def build(shape: tuple[int, ...], outputs: int, **how: Any) -> Model:
        key = json.dumps([shape, outputs, how], sort_keys=True)
        return MODELS[key] if key in MODELS else MODELS.setdefault(key, original(shape, outputs, **how))

    monkeypatch.setattr(module, "build", build)


MODELS: dict[str, Model] = {}


def table(variant: str, sizes: tuple[int, ...] = SIZES, **how: Any) -> Simulation:
    """A residual network for tables, with batch norm and dropout."""
    package("rtdl_revisiting_models")
    arguments = {"d_in": 16, "d_out": CLASSES, "n_blocks": 1, "d_block": 6, "d_hidden_multiplier": 1.5,
                 "dropout1": 0.2, "dropout2": 0.0}  # fmt: skip
    model = {"kind": "module", "build": "rtdl_revisiting_models:ResNet", "arguments": arguments}
    return simulate(variant, model=model, data=make_data(sizes, shape=(16,)), **how)


def text(variant: str, dropout: float = 0.1, **how: Any) -> Simulation:
    """A BERT that classifies token ids. Samples are padded with the id 0."""
    package("transformers")
    data = replace(make_data(SIZES, shape=(TOKENS,)), scale=1)
    model = {"kind": "module", "build": f"{PLAIN}:bert", "arguments": {"dropout": dropout},
             "inputs": {"input_ids": "ids", "attention_mask": "ids != 0"}}  # fmt: skip
    return simulate(variant, model=model, data=data, **how)


def images(variant: str, **how: Any) -> Simulation:
    """EfficientNet-Lite0 with its published weights, except those of the last layer."""
    package("efficientnet_lite_pytorch")
    if not WEIGHTS.exists():
        pytest.skip("FLORAL_DATA has no efficientnet_lite0/model.safetensors")
    build = "efficientnet_lite_pytorch:EfficientNet.from_name"
    model = {"kind": "module", "build": build, "weights": str(WEIGHTS), "ignore": ["_fc.*"],
             "arguments": {"model_name": "efficientnet-lite0", "num_classes": CLASSES}}  # fmt: skip
    data = make_data((3, 2), shape=(32, 32, 3))
    return simulate(variant, model=model, data=data, dtype=torch.float32, **how)


def check_trained(simulation: Simulation) -> State:
    """Train two rounds, and check that all values are finite and that some of them changed."""
    start = simulation.start().tensors()
    state = train(simulation, rounds=2)
    assert all(bool(tensor.isfinite().all()) for tensor in state.tensors().values())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in state.tensors().items())
    return state


NEED_WIDTH = {"fedavg_wide", "pfedmoe"}
"""Methods with a narrower or wider model."""


@pytest.mark.parametrize("variant", FIRST.values())
def test_every_method_trains_a_module_of_a_package(variant: str) -> None:
    if variant in NEED_WIDTH:
        with pytest.raises(ConfigError, match="has no argument `width`; give it one that multiplies the sizes"):
            table(variant, PAIR)
    elif variant != "constant":
        check_trained(table(variant, PAIR))


@pytest.mark.parametrize("variant", ["fedavg", "floral_1"])
@pytest.mark.parametrize("backend", ["vmap", "batched"])
def test_all_backends_train_the_same(variant: str, backend: str) -> None:
    loop = train(table(variant), rounds=2)
    assert_close(train(table(variant, backend=backend, chunk=2), rounds=2).tensors(), loop.tensors(), 1e-9)


@pytest.mark.parametrize("variant", OF_EACH_KIND)
def test_a_bert_classifies_token_ids(variant: str) -> None:
    check_trained(text(variant))


def test_the_mask_of_token_ids_is_that_of_a_tokenizer() -> None:
    """The predictions are those of the module with `input_ids` and `attention_mask` by hand."""
    simulation = text("fedavg", dropout=0.0)
    state = train(simulation, rounds=1)
    original = plain.bert(CLASSES, 0.0).double().eval()
    values = {name.removeprefix("value/base/").removesuffix(".value"): t for name, t in state.tensors().items()}
    assert original.load_state_dict(values, strict=False).unexpected_keys == []
    x = simulation.data.test.decode(simulation.data.test.x)
    assert bool((x == 0).any())
    with torch.no_grad():
        expected = original(input_ids=x.long(), attention_mask=(x != 0).long()).logits
    torch.testing.assert_close(simulation.method.predict(state.values, x, None, None)[0], expected, rtol=0, atol=1e-12)


def test_a_rule_of_inputs_that_does_not_exist_is_an_error() -> None:
    model = {"kind": "module", "build": f"{PLAIN}:mlp", "inputs": {"mask": "ids > 0"}}
    with pytest.raises(ConfigError, match=r"`inputs: \{mask: ids > 0\}` is no rule; write `x`"):
        simulate(model=model)


@pytest.mark.parametrize("variant", ["fedavg", "floral_1", "private_norm", "local_adaptor"])
def test_a_pretrained_network_of_convolutions_is_trained(variant: str) -> None:
    simulation = images(variant, base="frozen" if variant == "local_adaptor" else "trained")
    check_trained(simulation)


def test_the_published_weights_are_the_start() -> None:
    start = images("fedavg").start().values
    with safe_open(WEIGHTS, framework="pt") as file:
        stem, mean = file.get_tensor("_conv_stem.weight"), file.get_tensor("_bn0.running_mean")
    assert torch.equal(start["base"]["_conv_stem.weight"], stem)
    assert torch.equal(start["statistics"]["_bn0.mean"], mean)

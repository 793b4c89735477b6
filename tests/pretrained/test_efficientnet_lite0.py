"""EfficientNet-Lite0: equal to the public package, with its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from federations import CLASSES, CPU, make_data, make_run, train
from skips import package
from torch import nn

from floral.config import networks
from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.engine.simulate import Execution, Simulation
from floral.models import efficientnet_lite0
from floral.stages.assemble import build_method, client_data, make_problem, make_settings
from floral.toolkit.prepared import with_weights

KEYS = {"kind": "efficientnet_lite0", "size": 32, "weights": "efficientnet_lite0", "ignore": ["_fc.*"]}


@pytest.mark.parametrize("size", [64, 224])
def test_the_model_is_that_of_the_public_package(size: int, stored: Callable[[str], Path]) -> None:
    efficientnet = package("efficientnet_lite_pytorch")
    path = stored("efficientnet_lite0") / "data" / "efficientnet_lite0" / "model.safetensors"
    model = with_weights(efficientnet_lite0.build((size, size, 3), 1000, size=size), path, ())
    public: nn.Module = efficientnet.EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    from safetensors.torch import load_file

    public.load_state_dict(load_file(path), strict=True)
    x = torch.randn(4, size, size, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = public(x.movedim(-1, 1))
        logits, _ = model(model.init(Stream(0, "model")), model.statistics(), x, None, None)
    assert expected.abs().max() > 1
    assert (logits - expected).abs().max() < 1e-4


def test_images_are_resized_and_grey_images_have_three_equal_channels() -> None:
    model = efficientnet_lite0.build((16, 16), 3, size=32)
    params, statistics = model.init(Stream(0, "model")), model.statistics()
    x = torch.rand(2, 16, 16)
    colours = efficientnet_lite0.build((16, 16, 3), 3, size=32)
    with torch.no_grad():
        grey, _ = model(params, statistics, x, None, None)
        equal, _ = colours(params, statistics, x[..., None].expand(-1, -1, -1, 3), None, None)
    assert torch.equal(grey, equal)


def test_a_frozen_network_of_data_lock_is_trained_in_its_head_and_adaptors(stored: Callable[[str], Path]) -> None:
    results = stored("efficientnet_lite0")
    data = make_data((3, 2), shape=(16, 16, 3))
    run = make_run("local_adaptor", model={**KEYS, "adapt": ["*_project_conv"]}, clients=2, base="frozen")
    method = build_method(run, make_problem(run, data, CPU, torch.float32, results))
    tensors = client_data(data, method, CPU, torch.float32)
    state = train(Simulation(method, tensors, make_settings(run), Execution("loop", 1)), rounds=1)
    values = {name: value for params in state.values.values() for name, value in params.items()}
    layers = {name.rpartition(".")[0] for name in values}
    assert layers == {"_fc", *(f"_blocks.{number}._project_conv" for number in range(16))}
    assert values["_fc.weight"].shape == (CLASSES, 1280)
    assert all(bool(value.isfinite().all()) for value in values.values())
    assert networks.used(run.task.model) == {"weights": "efficientnet_lite0"}


def test_other_widths_and_other_channels_are_refused() -> None:
    with pytest.raises(Refused, match="this model has one size; use another method"):
        efficientnet_lite0.build((16, 16, 3), 3, width=2.0)
    with pytest.raises(Refused, match="images with 4 channels do not fit this model, which needs 1 or 3"):
        efficientnet_lite0.build((16, 16, 4), 3)

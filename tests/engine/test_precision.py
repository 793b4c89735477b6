"""Products in bfloat16 are close to single precision, and everything else stays in it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest
import torch
from federations import CPU, FIRST, OF_EACH_KIND, simulate, train

from floral.config.reading import ConfigError
from floral.core.precision import PRECISIONS
from floral.engine import devices, execution
from floral.engine.simulate import Execution
from floral.stages.choose_execution import configure_device, resolve_execution

TOLERANCE = 0.05
"""Of a group's movement in two rounds, in the Euclidean norm: bfloat16 has 8 bits of mantissa, each step some products
in a row, and gradients that partly cancel. Errors found are 0.2 to 2 %."""
PLAIN = [variant for variant in FIRST.values() if simulate(variant).method.phases != ()]
MODELS = [("fedavg", "cnn"), ("floral_1", "cnn"), ("local_adaptor", "cnn"), ("floral_1", "batch_norm")]


def norm(values):
    return float(torch.cat([tensor.flatten() for tensor in values]).norm())


def two_rounds(variant, model, backend, precision):
    """The state at the start and after two rounds at a small rate: larger ones amplify any difference."""
    chunk = 1 if backend == "loop" else 3
    how = {"lr": 0.01, "router_lr": 0.01, "dtype": torch.float32, "precision": precision}
    simulation = simulate(variant, model=model, backend=backend, chunk=chunk, **how)
    return simulation.start(), train(simulation, 2)


WHERE = [
    (variant, model, backend)
    for variant, model in [*((variant, None) for variant in PLAIN), *MODELS]
    for backend in ("loop", "vmap", "batched")
    if variant in OF_EACH_KIND or backend == "batched"  # which computes its products in another way
]


@pytest.mark.usefixtures("without_recording")
@pytest.mark.parametrize(("variant", "model", "backend"), WHERE)
def test_bf16_moves_the_parameters_as_fp32_does(variant, model, backend):
    start, exact = two_rounds(variant, model, backend, "fp32")
    rounded_start, rounded = two_rounds(variant, model, backend, "bf16")  # `prepare` trains too, in this precision
    differs = False
    for group, params in exact.values.items():
        moved = [tensor - start.values[group][name] for name, tensor in params.items()]
        rounded_moved = [rounded.values[group][name] - rounded_start.values[group][name] for name in params]
        error = norm(a - b for a, b in zip(moved, rounded_moved, strict=True))
        assert error <= TOLERANCE * norm(moved) + 1e-6, (group, error, norm(moved))
        assert all(tensor.dtype == torch.float32 for tensor in rounded.values[group].values())
        differs |= error > 0
    assert differs


def test_tf32_is_refused_on_a_cpu_and_says_what_to_do():
    with pytest.raises(ConfigError, match=r"`precision: tf32`: a CPU cannot.*fp32 or bf16.*device: cuda"):
        configure_device(CPU, "tf32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_is_told_its_precision_and_to_repeat_itself(monkeypatch, precision):
    """The switches exist in every build of PyTorch; nothing here needs a GPU."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        devices.settle(torch.device("cuda", 0), precision)
        wanted = "tf32" if precision == "tf32" else "ieee"
        assert (matmul.fp32_precision, conv.fp32_precision) == (wanted, wanted)
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # whoever set it meant it
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
        torch.use_deterministic_algorithms(False)


def test_a_cpu_is_told_nothing():
    devices.settle(CPU, "bf16")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("backend", ["auto", "loop", "vmap", "batched"])
def test_every_choice_of_backend_keeps_the_precision(monkeypatch, backend):
    monkeypatch.setattr(execution, "seconds_per_client", lambda trial, state: execution.Timing(9.0))
    simulation = simulate("fedavg")
    assert execution.choose(simulation, simulation.start(), backend, 1, "bf16").precision == "bf16"
    alone = simulate("centralised")
    assert execution.choose(alone, alone.start(), backend, 1, "bf16").precision == "bf16"


def test_another_precision_is_stored_apart_and_recorded(tmp_path):
    folder = tmp_path / "seed0"
    folder.mkdir()
    simulation = simulate("fedavg")
    for precision in ("fp32", "bf16"):
        chosen = resolve_execution(simulation, simulation.start(), folder, "0" * 8, "loop", 1, precision)
        assert asdict(chosen)["precision"] == precision
    assert sorted(json.loads(path.read_text())["precision"] for path in tmp_path.glob("*.json")) == ["bf16", "fp32"]


def test_an_execution_of_an_older_version_was_in_single_precision():
    assert Execution(**{"backend": "loop", "chunk": 1, "workers": 1, "threads": 1, "reason": ""}).precision == "fp32"

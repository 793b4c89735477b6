"""The same rounds on a GPU: run where there is one, for no continuous integration has it.

    pytest tests/engine/test_cuda.py

What can be seen without one is in test_graphs.py (a stand-in for CUDA's graphs), test_precision.py, test_execution.py
(which execution and which place a GPU gets) and test_locks.py (places).
"""

from __future__ import annotations

import federations
import pytest
import torch
from federations import MODELS, VARIANTS, assert_close, buildable, simulate, train

from floral.cluster.gpus import gpu_ids, hold_device
from floral.core.precision import PRECISIONS
from floral.engine import devices, execution
from floral.stages import provenance
from floral.stages.progress import Progress
from floral.stages.rounds import read_checkpoint, save_checkpoint

if not torch.cuda.is_available():
    pytest.skip("a CUDA GPU is missing", allow_module_level=True)

# torch names operations without a deterministic version; whether bits differ is what the tests below look at.
pytestmark = pytest.mark.filterwarnings("ignore:.*deterministic.*:UserWarning")

CUDA = torch.device("cuda", 0)
BACKENDS = {
    "loop": {"backend": "loop"},
    "vmap": {"backend": "vmap", "chunk": 3},
    "batched": {"backend": "batched", "chunk": 3},
    "graphs": {"backend": "batched", "chunk": 3, "graphs": True},
}
CASES = [pytest.param(variant, backend, id=f"{variant}-{backend}") for variant in VARIANTS for backend in BACKENDS]
SOME = ["fedavg", "floral_1", "floral_1_optimal", "local_adaptor", "ensemble", "ditto"]
EVERY_MODEL = [(v, m) for v in ("fedavg", "floral_1") for m in MODELS if buildable(v, m)]


@pytest.fixture(autouse=True)
def settled():
    devices.settle(CUDA, "fp32")
    yield
    devices.settle(CUDA, "fp32")
    torch.use_deterministic_algorithms(False)


def on_cpu(variant, backend="loop", **how):
    how = {**BACKENDS[backend], "graphs": False, **how}
    return train(simulate(variant, **how)).tensors()


def on_gpu(variant, backend, rounds=3, **how):
    state = train(simulate(variant, device=CUDA, **BACKENDS[backend], **how), rounds)
    assert all(tensor.device == CUDA for tensor in state.tensors().values())
    return {name: tensor.cpu() for name, tensor in state.tensors().items()}


# ------------------------------------------------------------------------------------------- CPU and GPU


@pytest.mark.parametrize(("variant", "backend"), CASES)
def test_a_gpu_gives_what_the_cpu_gives(variant, backend):
    """float64, over 3 rounds: sums are added in another order, nothing else differs."""
    assert_close(on_gpu(variant, backend), on_cpu(variant, backend), 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("variant", "model"), EVERY_MODEL)
def test_every_model_gives_what_it_gives_on_the_cpu(variant, model, backend):
    assert_close(on_gpu(variant, backend, model=model), on_cpu(variant, backend, model=model), 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", SOME)
def test_single_precision_is_single_precision(variant, backend):
    """With 10 bits of mantissa, as in tf32, differences would be a hundred times as large."""
    how = {"dtype": torch.float32, "lr": 0.01, "router_lr": 0.01}
    assert_close(on_gpu(variant, backend, **how), on_cpu(variant, backend, **how), 1e-5)


# ----------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_change_nothing(variant, batch):
    """In rounds of several steps and of one; chunks of 3 leave a last one of 2, last batches are short.

    The same kernels on other addresses: a library may choose by alignment, hence no bits are asked for.
    """
    assert_close(on_gpu(variant, "graphs", batch=batch), on_gpu(variant, "batched", batch=batch), 1e-10)


def test_results_of_earlier_graphs_are_nobody_elses_memory():
    """Twelve rounds in chunks of 1, 2 and 5: graphs of many layouts take turns in one pool of memory."""
    for chunk in (1, 2, 5):
        how = {"backend": "batched", "chunk": chunk, "rounds": 12}
        ours = train(simulate("floral_1", device=CUDA, graphs=True, **how), 12).tensors()
        assert_close(
            {name: t.cpu() for name, t in ours.items()}, train(simulate("floral_1", **how), 12).tensors(), 1e-8
        )


# ------------------------------------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["mlp", "cnn", "batch_norm"])
def test_the_same_execution_gives_the_same_bits(model, backend, precision):
    devices.settle(CUDA, precision)
    how = {"model": model, "dtype": torch.float32, "precision": precision}
    assert_close(on_gpu("floral_1", backend, **how), on_gpu("floral_1", backend, **how), 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", SOME)
def test_a_resumed_run_is_the_same_run(variant, backend, tmp_path):
    """Stopped after every round and continued from its checkpoint by a simulation that knows nothing else."""

    def fresh():
        how = {"dtype": torch.float32, "server": {"optimiser": "adam", "lr": 0.01}}
        return simulate(variant, device=CUDA, **BACKENDS[backend], **how)

    whole = train(fresh(), 3)
    path, state = tmp_path / "checkpoint" / "last.safetensors", fresh().start()
    for round in (1, 2, 3):
        fresh().train(state, round)
        save_checkpoint(path, state, Progress(round=round))
        state, _ = read_checkpoint(path, fresh(), tmp_path / "none")
    federations.assert_equal_states(state, whole, 0.0)


# -------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 0.01), ("bf16", 0.05)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", SOME)
def test_shorter_precisions_move_the_parameters_alike(variant, backend, precision, tolerance):
    """Relative to each tensor's largest value after two rounds at a small rate."""
    how = {"dtype": torch.float32, "lr": 0.01, "router_lr": 0.01, "rounds": 2}
    exact = on_gpu(variant, backend, **how)
    devices.settle(CUDA, precision)
    assert_close(on_gpu(variant, backend, precision=precision, **how), exact, tolerance)


def test_tf32_products_are_what_was_asked_for():
    """On GPUs that have them (compute capability 8 and later)."""
    x = torch.linspace(0.1, 1, 256 * 256, device=CUDA).reshape(256, 256)
    exact = x.double() @ x.double()
    errors = {}
    for precision in ("fp32", "tf32"):
        devices.settle(CUDA, precision)
        errors[precision] = float(((x @ x).double() / exact - 1).abs().max())
    assert errors["fp32"] < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert 1e-5 < errors["tf32"] < 1e-2


# ------------------------------------------------------------------------------------- choice and record


def test_auto_finds_an_execution_for_one_thread():
    simulation = simulate("floral_1", device=CUDA, dtype=torch.float32, rounds=10**6)
    chosen = execution.choose(simulation, simulation.start(), "auto", threads=2)
    assert chosen.workers == chosen.threads == 1
    assert chosen.graphs == (chosen.backend == "batched")


def test_a_run_holds_a_place_and_records_its_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr("floral.cluster.gpus.lease_folder", lambda environment: tmp_path)
    assert len(set(gpu_ids())) == torch.cuda.device_count()
    with hold_device("cuda", 1) as device:
        found = provenance.gpu(device)
        assert found and found["index"] == 0 and found["name"] == torch.cuda.get_device_name(0)
        simulation = simulate("fedavg", device=device)
        train(simulation)
        assert 0 < provenance.peak_memory(device) <= found["memory_bytes"]

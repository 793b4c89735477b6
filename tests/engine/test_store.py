"""Private state in a file: the same numbers, memory and time of the cohort alone, exact after a kill at any moment."""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import federations
import numpy as np
import pytest
import torch
from federations import simulate
from safetensors.torch import load_file

from floral.cluster.stops import Stop
from floral.config.reading import ConfigError
from floral.engine import checkpoint, store
from floral.engine.state import State, view
from floral.engine.store import Store
from floral.stages import record
from floral.stages.progress import Progress
from floral.stages.rounds import read_checkpoint, run_rounds, save_checkpoint
from floral.toolkit.parts import repeated_start

VARIANTS = ["local", "local_adaptor", "floral_1"]
ROUNDS = 4
AT_ONCE = Stop(by=signal.SIGTERM, at=math.inf)


@pytest.fixture
def no_memory(monkeypatch):
    """Whatever is private goes to a file, and changes wait for the checkpoint that a test makes."""
    monkeypatch.setattr(store, "MEMORY_BUDGET_BYTES", 0)
    monkeypatch.setattr(Store, "full", property(lambda self: False))


def fresh(variant: str, **how):
    return simulate(variant, dtype=torch.float32, backend="vmap", chunk=3, rounds=ROUNDS, **how)


def undisturbed(variant: str, **how) -> tuple[State, Progress]:
    """The end of a run whose private state is in memory."""
    simulation, progress = fresh(variant, **how), Progress()
    state = simulation.start()
    assert state.store is None
    run_rounds(simulation, state, progress, Path("never"), 1e9, Stop())
    return state, progress


def assert_same_end(ours: tuple[State, Progress], other: tuple[State, Progress]) -> None:
    for name, tensor in other[0].tensors().items():
        assert torch.equal(ours[0].tensors()[name], tensor), name
    assert set(ours[0].tensors()) == set(other[0].tensors())
    for kept in ("round", "metrics", "routes", "official"):
        assert getattr(ours[1], kept) == getattr(other[1], kept), kept


# ------------------------------------------------------------------------------------------- equal numbers


@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("place", ["file", "temporary"])
def test_a_simulation_with_a_store_is_the_one_without(variant, model, place, tmp_path, monkeypatch):
    """Rounds with evaluations that see rows of the file and rows that changed since; the cohort is a part of all."""
    how = {"model": model, "fidelity": "official", "participation": 0.4}
    plain = undisturbed(variant, **how)
    monkeypatch.setattr(store, "MEMORY_BUDGET_BYTES", 0)
    monkeypatch.setattr(Store, "full", property(lambda self: False))
    simulation, progress = fresh(variant, **how), Progress()
    state = simulation.start(tmp_path / store.NAME if place == "file" else None)
    run_rounds(simulation, state, progress, tmp_path / "never", 1e9, Stop())
    assert_same_end((state, progress), plain)
    assert (state.store is not None) == (tmp_path / store.NAME).exists() == (place == "file")
    assert not (tmp_path / "never").exists()


def test_what_is_in_memory_never_exceeds_the_budget_unnoticed(tmp_path, monkeypatch):
    """A store appears when the private state is larger than the budget, and is full when its changes are."""
    simulation = fresh("local")
    size = sum(tensor.nbytes for tensor in simulation.start().values["base"].values())
    monkeypatch.setattr(store, "MEMORY_BUDGET_BYTES", size)
    assert simulation.start(tmp_path / "a").store is None and not (tmp_path / "a").exists()
    monkeypatch.setattr(store, "MEMORY_BUDGET_BYTES", size - 1)
    state = simulation.start(tmp_path / "b")
    assert state.store is not None and not state.store.full
    simulation.train(state, 1)
    assert len(state.store.changed) == simulation.settings.cohort and state.store.full


def test_a_run_writes_a_checkpoint_when_its_changes_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MEMORY_BUDGET_BYTES", 0)
    simulation = fresh("local")
    state = simulation.start(tmp_path / store.NAME)
    run_rounds(simulation, state, Progress(), tmp_path / "last.safetensors", 1e9, Stop())
    assert state.store is not None and not state.store.changed
    assert (tmp_path / "last.safetensors").exists()


def test_gathering_returns_the_rows_of_the_cohort_alone(no_memory, tmp_path):
    simulation = fresh("local_adaptor")
    state = simulation.start(tmp_path / store.NAME)
    ids = torch.tensor([5, 0])
    seen, axes = view(simulation.method, state.values, ids, ids)
    assert axes == {"base": None, "adaptor": 0}
    assert all(tensor.shape[0] == 2 for tensor in seen["adaptor"].values())


# ------------------------------------------------------------------------------------------- exact resumption


class Killed(BaseException):
    """What a test raises where a process would die: nothing that is only in memory is looked at afterwards."""


def kill_after_the_checkpoint(monkeypatch):
    """The journal is in place, none of it in the file."""

    def never(self, journal):
        raise Killed

    monkeypatch.setattr(Store, "apply", never)


def kill_in_the_middle_of_applying(monkeypatch):
    """Of the first tensor all rows but the last and half of that are in the file, of the other tensors none."""
    real = store.overwrite

    def torn(file, begin, rows, values):
        real(file, begin, rows[:-1], values[:-1])
        row = store.as_bytes(values[-1])
        file.seek(begin + rows[-1] * len(row))
        file.write(row[: len(row) // 2])
        raise Killed

    monkeypatch.setattr(store, "overwrite", torn)


def kill_before_the_checkpoint(monkeypatch):
    """Rounds have changed rows, and the new checkpoint has not replaced the old one."""

    def never(path, tensors, progress):
        raise Killed

    monkeypatch.setattr(checkpoint, "write", never)


KILLS = [kill_before_the_checkpoint, kill_after_the_checkpoint, kill_in_the_middle_of_applying]


def go_on(variant: str, folder: Path, stop: Stop) -> tuple[State, Progress]:
    """What the train stage does when it starts: from the checkpoint if there is one, else from the start."""
    path, private = folder / "checkpoint" / "last.safetensors", folder / store.NAME
    simulation = fresh(variant)
    if checkpoint.there(path):
        state, progress = read_checkpoint(path, simulation, private)
    else:
        state, progress = simulation.start(private), Progress()
    run_rounds(simulation, state, progress, path, 1e9, stop)
    return state, progress


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_kill_at_any_moment_changes_nothing(variant, before, kill, tmp_path, monkeypatch):
    """`before` rounds, each with its checkpoint, then a round whose checkpoint is killed, twice; then to the end."""
    plain = undisturbed(variant)
    monkeypatch.setattr(store, "MEMORY_BUDGET_BYTES", 0)
    monkeypatch.setattr(Store, "full", property(lambda self: False))
    for _ in range(before):
        with pytest.raises(KeyboardInterrupt):
            go_on(variant, tmp_path, AT_ONCE)
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill(patch)
            go_on(variant, tmp_path, AT_ONCE)
    assert_same_end(go_on(variant, tmp_path, Stop()), plain)


def test_changes_of_several_rounds_wait_for_one_checkpoint(no_memory, tmp_path, monkeypatch):
    """Killed in round 3 without a checkpoint since round 1: the file is as after round 1, though rows of two more
    rounds were written since."""
    simulation = fresh("local")
    with pytest.raises(KeyboardInterrupt):
        go_on("local", tmp_path, AT_ONCE)
    at_one = (tmp_path / store.NAME).read_bytes()
    path = tmp_path / "checkpoint" / "last.safetensors"
    state, progress = read_checkpoint(path, simulation, tmp_path / store.NAME)
    for round in (2, 3):
        simulation.train(state, round)
    assert state.store is not None and len(state.store.changed) > simulation.settings.cohort
    assert (tmp_path / store.NAME).read_bytes() == at_one
    del state, progress
    monkeypatch.undo()
    monkeypatch.setattr(Store, "full", property(lambda self: False))
    assert_same_end(go_on("local", tmp_path, Stop()), undisturbed("local"))


def test_a_start_that_was_killed_is_written_again(tmp_path, monkeypatch):
    plain = undisturbed("local")
    (tmp_path / store.NAME).write_bytes(b"half")
    (tmp_path / f"{store.NAME}.partial").write_bytes(b"a quarter")
    monkeypatch.setattr(store, "MEMORY_BUDGET_BYTES", 0)
    assert_same_end(go_on("local", tmp_path, Stop()), plain)
    assert not list(tmp_path.glob("*.partial"))


def test_a_checkpoint_holds_the_changed_rows_alone(no_memory, tmp_path):
    """Not the private state of those who took no part."""
    simulation = fresh("local_adaptor", participation=0.3)
    state = simulation.start(tmp_path / store.NAME)
    simulation.train(state, 1)
    kept = state.checkpoint_tensors()
    cohort = simulation.cohort(1)
    assert kept[store.ROWS].tolist() == cohort.tolist()
    assert not [name for name in kept if name.startswith("value/adaptor")]
    for name, tensor in state.values["adaptor"].items():
        assert torch.equal(kept[f"private/adaptor/{name}"], tensor[cohort])
    save_checkpoint(tmp_path / "last", state, Progress(round=1))
    assert state.checkpoint_tensors()[store.ROWS].tolist() == []


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 100)])
def test_a_missing_or_damaged_file_is_named_with_its_remedy(no_memory, damage, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go_on("local", tmp_path, AT_ONCE)
    damage(tmp_path / store.NAME)
    with pytest.raises(ConfigError, match=r"private\.safetensors: .*missing or damaged.*remove.*`checkpoint`"):
        go_on("local", tmp_path, Stop())


# ------------------------------------------------------------------------------------------- the file


def test_the_file_is_the_final_state_of_the_private_groups(no_memory, tmp_path):
    """As safetensors itself reads it; model.safetensors holds the rest and names the file."""
    with pytest.raises(KeyboardInterrupt):
        go_on("local_adaptor", tmp_path, AT_ONCE)
    state, progress = go_on("local_adaptor", tmp_path, Stop())
    save_checkpoint(tmp_path / "last", state, progress)
    (tmp_path / "model.safetensors").write_bytes(record.model(state))
    found = load_file(tmp_path / store.NAME) | load_file(tmp_path / "model.safetensors")
    plain, _ = undisturbed_values("local_adaptor")
    assert set(found) == set(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("adaptor/")]


def undisturbed_values(variant: str) -> tuple[dict[str, torch.Tensor], Progress]:
    """model.safetensors of a run without a store, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "MEMORY_BUDGET_BYTES", 1 << 30)
        state, progress = undisturbed(variant)
    return {f"{group}/{name}": t for group, params in state.values.items() for name, t in params.items()}, progress


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_start_is_cast_and_written_in_blocks(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_BYTES", 64)
    values = {
        "a": repeated_start({"w.x": torch.randn(3, 5), "s": torch.tensor(2.5)}, 11),
        "b": {"v": torch.randn(11, 4)},
    }
    made = Store.create(tmp_path / "p", values, dtype).values
    temporary = store.scratch(values, dtype)
    for group, params in values.items():
        for name, tensor in params.items():
            assert torch.equal(made[group][name], tensor.to(dtype))
            assert torch.equal(temporary[group][name], tensor.to(dtype))
            assert torch.equal(load_file(tmp_path / "p")[f"{group}/{name}"], tensor.to(dtype))


def test_a_full_disk_is_named_with_what_was_needed(tmp_path):
    """A file that may not grow beyond 1 MB stands for a disk that is full."""
    values = {"base": repeated_start({"w": torch.zeros(1000)}, 1000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"0\.004 GB of PRIVATE values; free space.*p'") as raised:
            Store.create(tmp_path / "p", values, torch.float32)
        with pytest.raises(OSError, match="TMPDIR"):
            store.scratch(values, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- memory

CLIENTS, FLOATS = 20_000, 2_500  # 200 MB
MEASURED = """
import sys
from pathlib import Path
import torch
from floral.engine import store
from floral.engine.state import State, gather, start
from floral.core.spec import Group, Method, Scope
from floral.engine.aggregate import write_back
from floral.toolkit.parts import repeated_start
from types import SimpleNamespace

def anonymous():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

clients, floats, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
store.MEMORY_BUDGET_BYTES = 1 << 20
method = Method(
    groups={"base": Group(scope=Scope.PRIVATE, init=lambda: repeated_start({"w": torch.zeros(floats)}, clients))},
    predict=None,
)
torch.zeros(floats).clone()
before, most = anonymous(), 0
state = start(method, torch.float32, torch.device("cpu"), place if sys.argv[4] == "file" else None)
most = max(most, anonymous() - before)
for round in range(5):
    ids = torch.randperm(clients)[:30]
    rows = gather(state.values["base"]["w"], ids)
    write_back(state, method, SimpleNamespace(values={"base": {"w": rows + 1}}), ids)
    most = max(most, anonymous() - before)
assert float(state.values["base"]["w"].sum()) == 5 * 30 * floats  # reads every row
print(max(most, anonymous() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status")
@pytest.mark.parametrize("place", ["file", "temporary"])
def test_neither_the_start_nor_the_rounds_hold_a_copy_per_client(place, tmp_path):
    """Anonymous memory of a process of its own: blocks of the start and the pages that rounds changed, not 200 MB."""
    arguments = [str(CLIENTS), str(FLOATS), str(tmp_path / "p"), place]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    size = 4 * CLIENTS * FLOATS
    assert int(done.stdout) < size / 3, f"{int(done.stdout) / 1e6:.0f} MB"
    assert [path.stat().st_size // size for path in tmp_path.iterdir()] == ([1] if place == "file" else [])


def test_a_common_start_is_one_tensor_until_the_engine_needs_more():
    start = {"w": torch.arange(3.0)}
    many = repeated_start(start, 1000)
    assert many["w"].shape == (1000, 3) and many["w"].untyped_storage().nbytes() == start["w"].nbytes


def test_two_starts_share_no_memory():
    """A start in memory is its own, even where one holder's would be the method's tensor."""
    for variant in ("centralised", "local", "floral_1"):
        simulation = simulate(variant, model="batch_norm")
        first, second = simulation.start(), simulation.start()
        for _ in range(2):
            simulation.train(first, 1)
        federations.assert_equal_states(second, simulation.start(), 0.0)
        assert np.all([not torch.equal(t, first.values["base"][n]) for n, t in second.values["base"].items()])

"""A run that was stopped, or killed, ends as an undisturbed one: every number, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import federations
import polars as pl
import pytest
import torch
import yaml
from federations import VARIANTS, simulate
from safetensors.torch import load_file

from floral import config
from floral.engine import checkpoint
from floral.engine.store import NAME
from floral.stages import execute, segments, written
from floral.stages.fetch import fetch
from floral.stages.partition import partition
from floral.stages.record import Progress

STOP_AT_ONCE = [signal.SIGTERM]


def metrics(progress: Progress) -> bytes:
    """metrics.parquet as the train stage writes it."""
    return written.parquet(pl.DataFrame(progress.metrics, schema=written.METRICS, orient="row"))


@pytest.mark.parametrize("fidelity", ["corrected", "official"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_after_every_round_equals_an_undisturbed_one(variant, fidelity, tmp_path):
    """4 rounds, each in a simulation of its own that knows only the checkpoint; with a server that has moments."""

    def fresh():
        server = {"optimiser": "adam", "lr": 0.01}
        return simulate(variant, fidelity=fidelity, server=server, dtype=torch.float32, backend="vmap", chunk=3)

    path = tmp_path / "checkpoint" / "last.safetensors"
    whole, whole_state, undisturbed = fresh(), fresh().start(), Progress()
    execute.rounds(whole, whole_state, undisturbed, tmp_path / "never", 1e9, [])

    state, progress, stops = fresh().start(), Progress(), 0
    while True:
        try:
            execute.rounds(fresh(), state, progress, path, 1e9, list(STOP_AT_ONCE))
            break
        except KeyboardInterrupt:
            stops += 1
            state, progress = execute.resume(path, fresh(), tmp_path / "none")
    assert stops == whole.settings.rounds == progress.resumptions
    assert metrics(progress) == metrics(undisturbed)
    for kept in ("official", "routes"):
        assert json.dumps(getattr(progress, kept)) == json.dumps(getattr(undisturbed, kept))
    federations.assert_equal_states(state, whole_state, 0.0)


def test_a_damaged_checkpoint_is_named_with_its_remedy(tmp_path):
    path = tmp_path / "last.safetensors"
    simulation = simulate("floral_1")
    checkpoint.write(path, simulation.start().tensors(), Progress().as_json())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(config.ConfigError, match=r"last\.safetensors: the checkpoint is damaged.*remove it"):
        execute.resume(path, simulation, tmp_path / "none")


def test_a_checkpoint_holds_every_tensor_bit_for_bit(tmp_path):
    simulation = simulate("floral_1", dtype=torch.float32, server={"optimiser": "adam", "lr": 0.01})
    state = federations.train(simulation, 2)
    checkpoint.write(tmp_path / "a", state.tensors(), Progress(round=2, bytes=2**40, official=[0.1 + 0.2]).as_json())
    again, progress = execute.resume(tmp_path / "a", simulation, tmp_path / "none")
    federations.assert_equal_states(again, state, 0.0)
    assert (progress.round, progress.bytes, progress.official, progress.resumptions) == (2, 2**40, [0.1 + 0.2], 1)
    assert not list(tmp_path.glob("*.partial"))


# ------------------------------------------------------------------------------------- a real process

TASK, VARIANT = "digits_label_shift_reduced", "floral_1"
CHANGE = {"clients": 6, "clusters": 3, "rounds": 40}
FLORAL = [sys.executable, "-m", "floral.cli"]
FLORAL_WITH_STORE = [
    sys.executable,
    "-c",
    "from floral.engine import store; store.BUDGET = 0; from floral.cli import main; raise SystemExit(main())",
]
"""The command for which nothing private fits into memory."""


@pytest.fixture
def tiny_suite(tmp_path, monkeypatch):
    """A copy of config/ with the suite `tiny`, and two equal results folders with its data and partition."""
    folder = tmp_path / "config"
    shutil.copytree(config.CONFIG, folder)
    block = {"tasks": [TASK], "variants": [VARIANT], "seeds": [0], "task": CHANGE}
    (folder / "suites" / "tiny.yaml").write_text(yaml.safe_dump({"title": "Tiny", "runs": [block]}))
    run = config.Run(
        task=config.task(TASK, CHANGE), variant=config.variant(VARIANT), seed=0, fidelity=config.fidelity("corrected")
    )
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    fetch("digits", killed)
    partition(run.partition, killed, run.task.batch, run.task.epochs)
    shutil.copytree(killed, undisturbed)
    monkeypatch.setenv("FLORAL_CONFIG", str(folder))
    return run, killed, undisturbed


def training(results: Path, floral: list[str] = FLORAL) -> subprocess.Popen[str]:
    """`floral train` as Snakemake starts it, with a checkpoint after every round."""
    names = ["--suite", "tiny", "--task", TASK, "--variant", VARIANT, "--seed", "0"]
    command = [*floral, "train", *names, "--backend", "loop", "--checkpoint-seconds", "1e-9"]
    environment = {**os.environ, "FLORAL_RESULTS": str(results)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said


def kill_in_the_middle(process: subprocess.Popen[str], folder: Path) -> int:
    """kill -9 as soon as a checkpoint is there; the round it is of."""
    path = folder / "checkpoint" / "last.safetensors"
    end = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    _, progress = checkpoint.read(path)
    assert not (folder / "summary.json").exists() and not (folder / "done").exists()
    return progress["round"]


@pytest.mark.parametrize("floral", [FLORAL, FLORAL_WITH_STORE], ids=["memory", "store"])
def test_a_process_killed_in_the_middle_and_started_again_ends_as_an_undisturbed_one(tiny_suite, floral):
    """With the private state in memory or in a file; the undisturbed one has it in memory."""
    run, killed, undisturbed = tiny_suite
    folder, other = killed / run.folder, undisturbed / run.folder
    calm = training(undisturbed)
    at = kill_in_the_middle(training(killed, floral), folder)
    assert 1 <= at < CHANGE["rounds"]
    finish(training(killed, floral))
    finish(calm)
    for name in ("metrics.parquet", "clients.parquet", "routes.parquet"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert said(folder) == said(other)
    assert same_model(folder, other)
    assert (folder / NAME).exists() == (floral is FLORAL_WITH_STORE)
    assert not list((folder / "checkpoint").glob("*"))
    assert (folder / "done").read_text().startswith("done")
    assert '"resumptions": 1' in (folder / "costs.json").read_text()


def said(folder: Path) -> list[tuple[int, tuple[tuple[str, str, float], ...]]]:
    """What the run's processes said of its rounds while they trained."""
    return [(evaluated.round, evaluated.metrics) for evaluated in segments.read(folder)]


def same_model(folder: Path, other: Path) -> bool:
    """Whether the final states are bit-equal: of one file, or of the two that a store leaves."""
    if not (folder / NAME).exists():
        return (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    rest, private, whole = (
        load_file(path) for path in (folder / "model.safetensors", folder / NAME, other / "model.safetensors")
    )
    assert not set(rest) & set(private) and set(rest | private) == set(whole)
    return all(torch.equal((rest | private)[name], tensor) for name, tensor in whole.items())

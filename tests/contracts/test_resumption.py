"""A run that was stopped, or killed, ends as an undisturbed one: every number, bit for bit."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import federations
import polars as pl
import psutil
import pytest
import torch
import yaml
from federations import OF_EACH_KIND, VARIANTS, simulate
from safetensors.torch import load_file

from floral.cli import main
from floral.cluster.stops import Stop, Stopped
from floral.config import catalogue, paths
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.engine import checkpoint
from floral.engine.store import NAME
from floral.runs import layout, segments
from floral.stages.fetch import fetch
from floral.stages.partition import partition
from floral.stages.progress import Progress
from floral.stages.rounds import read_checkpoint, run_rounds

STOP_AT_ONCE = Stop(by=signal.SIGTERM, at=math.inf)


def metrics(progress: Progress) -> bytes:
    """metrics.parquet as the train stage writes it."""
    return layout.parquet_bytes(pl.DataFrame(progress.metrics, schema=layout.METRICS, orient="row"))


@pytest.mark.parametrize(
    ("variant", "fidelity"),
    [(variant, "corrected") for variant in VARIANTS] + [(variant, "official") for variant in OF_EACH_KIND],
)
def test_a_run_stopped_after_every_round_equals_an_undisturbed_one(variant, fidelity, tmp_path):
    """4 rounds, each in a simulation of its own that knows only the checkpoint; with a server that has moments."""

    def fresh():
        server = {"optimiser": "adam", "lr": 0.01}
        return simulate(variant, fidelity=fidelity, server=server, dtype=torch.float32, backend="vmap", chunk=3)

    path = tmp_path / "checkpoint" / "last.safetensors"
    whole, whole_state, undisturbed = fresh(), fresh().start(), Progress()
    run_rounds(whole, whole_state, undisturbed, tmp_path / "never", 1e9, Stop())

    state, progress, stops = fresh().start(), Progress(), 0
    while True:
        try:
            run_rounds(fresh(), state, progress, path, 1e9, STOP_AT_ONCE)
            break
        except Stopped:
            stops += 1
            state, progress = read_checkpoint(path, fresh(), tmp_path / "none")
    assert stops == whole.settings.rounds == progress.resumptions
    assert metrics(progress) == metrics(undisturbed)
    for kept in ("official", "routes"):
        assert json.dumps(getattr(progress, kept)) == json.dumps(getattr(undisturbed, kept))
    federations.assert_equal_states(state, whole_state, 0.0)


@pytest.mark.parametrize("fidelity", ["corrected", "official"])
def test_a_run_stopped_in_the_middle_of_anything_equals_an_undisturbed_one(fidelity, tmp_path):
    """Given up before every local step and every piece of an evaluation once, each time in a simulation of its own."""

    def fresh(check_stop):
        return simulate(
            "floral_1", fidelity=fidelity, dtype=torch.float32, backend="vmap", chunk=3, check_stop=check_stop
        )

    path = tmp_path / "checkpoint" / "last.safetensors"
    calls = itertools.count(1)
    whole, undisturbed = fresh(lambda: next(calls)), Progress()
    whole_state = whole.start()
    run_rounds(whole, whole_state, undisturbed, tmp_path / "never", 1e9, Stop())

    state, progress, stops = whole.start(), Progress(), 0
    for moment in range(1, next(calls)):
        heeded = itertools.count(1)

        def check_stop(heeded=heeded, moment=moment):
            if next(heeded) == moment:
                raise Stopped(signal.SIGUSR1)

        try:
            run_rounds(fresh(check_stop), state, progress, path, 1e9, Stop())
            break
        except Stopped:
            stops += 1
            state, progress = read_checkpoint(path, fresh(check_stop), tmp_path / "none")
    assert stops == progress.resumptions >= whole.settings.rounds
    assert metrics(progress) == metrics(undisturbed)
    assert json.dumps(progress.official) == json.dumps(undisturbed.official)
    scores = [value for _, split, name, value, *_ in progress.metrics if (split, name) == ("official", "score")]
    assert scores == [score for score, _ in progress.official] and bool(scores) == (fidelity == "official")
    federations.assert_equal_states(state, whole_state, 0.0)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, Path.unlink])
def test_of_a_damaged_checkpoint_the_one_before_it_is_used(damage, tmp_path):
    """Rounds 1 and 2 left checkpoints; the second is damaged, and rounds 2 to 4 are made again."""

    def fresh():
        return simulate("floral_1", dtype=torch.float32, backend="vmap", chunk=3)

    path = tmp_path / "last.safetensors"
    whole, whole_state, undisturbed = fresh(), fresh().start(), Progress()
    run_rounds(whole, whole_state, undisturbed, tmp_path / "never", 1e9, Stop())
    state, progress = fresh().start(), Progress()
    for _ in range(2):
        with pytest.raises(Stopped):
            run_rounds(fresh(), state, progress, path, 1e9, STOP_AT_ONCE)
    damage(path)
    state, progress = read_checkpoint(path, fresh(), tmp_path / "none")
    assert progress.round == 1
    run_rounds(fresh(), state, progress, path, 1e9, Stop())
    assert metrics(progress) == metrics(undisturbed)
    federations.assert_equal_states(state, whole_state, 0.0)


@pytest.mark.parametrize("damage", [cut, flip_a_bit])
def test_without_one_before_it_a_damaged_checkpoint_is_named_with_its_remedy(damage, tmp_path):
    path = tmp_path / "last.safetensors"
    simulation = simulate("floral_1")
    checkpoint.write(path, simulation.start().tensors(), Progress().as_json())
    damage(path)
    with pytest.raises(ConfigError, match=r"last\.safetensors: the checkpoint is damaged.*remove it"):
        read_checkpoint(path, simulation, tmp_path / "none")


def test_a_checkpoint_holds_every_tensor_bit_for_bit(tmp_path):
    simulation = simulate("floral_1", dtype=torch.float32, server={"optimiser": "adam", "lr": 0.01})
    state = federations.train(simulation, 2)
    checkpoint.write(tmp_path / "a", state.tensors(), Progress(round=2, bytes=2**40, official=[0.1 + 0.2]).as_json())
    again, progress = read_checkpoint(tmp_path / "a", simulation, tmp_path / "none")
    federations.assert_equal_states(again, state, 0.0)
    assert (progress.round, progress.bytes, progress.official, progress.resumptions) == (2, 2**40, [0.1 + 0.2], 1)
    assert not list(tmp_path.glob("*.partial"))


# ------------------------------------------------------------------------------------- a real process

TASK, VARIANT = "digits_label_shift_reduced", "floral_1"
CHANGE = {"clients": 6, "clusters": 3, "rounds": 40}
FLORAL = [sys.executable, "-m", "floral.cli.main"]
FLORAL_WITH_STORE = [
    sys.executable,
    "-c",
    "from floral.engine import store; store.MEMORY_BUDGET_BYTES = 0; "
    "from floral.cli.main import main; raise SystemExit(main())",
]
"""The command for which nothing private fits into memory."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with a copy of config/ that has the suite `tiny`, with the run of an undisturbed process in `results`,
    and with the data and the partition of the run alone in `fresh`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = folder / "study" / "config"
    shutil.copytree(paths.CONFIG_FOLDER, config)
    block = {"tasks": [TASK], "variants": [VARIANT], "seeds": [0], "task": CHANGE}
    (config / "suites" / "tiny.yaml").write_text(yaml.safe_dump({"title": "Tiny", "runs": [block]}))
    fetch("digits", folder / "fresh")
    run = tiny_run()
    partition(run.partition, folder / "fresh", run.task)
    shutil.copytree(folder / "fresh", folder / "results")
    finish(training(folder / "results", folder / "study"))
    return folder


def tiny_run() -> Run:
    return Run(
        task=catalogue.task(TASK, CHANGE),
        variant=catalogue.variant(VARIANT),
        seed=0,
        fidelity=catalogue.fidelity("corrected"),
    )


@pytest.fixture
def results(tmp_path, undisturbed):
    """A results folder that has the data and the partition alone."""
    shutil.copytree(undisturbed / "fresh", tmp_path / "results")
    return tmp_path / "results"


def training(results: Path, study: Path, floral: list[str] = FLORAL) -> subprocess.Popen[str]:
    """`floral train` as Snakemake starts it, with a checkpoint after every round."""
    names = ["--suite", "tiny", "--task", TASK, "--variant", VARIANT, "--seed", "0"]
    command = [*floral, "train", *names, "--backend", "loop", "--checkpoint-seconds", "1e-9"]
    environment = {**os.environ, "FLORAL_RESULTS": str(results), "FLORAL_STUDY": str(study)}
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
    _, progress = checkpoint.read(path if path.exists() else checkpoint.before(path))
    assert not (folder / "summary.json").exists() and not (folder / "done").exists()
    return progress["round"]


@pytest.mark.parametrize("floral", [FLORAL, FLORAL_WITH_STORE], ids=["memory", "store"])
def test_a_process_killed_in_the_middle_and_started_again_ends_as_an_undisturbed_one(results, undisturbed, floral):
    """With the private state in memory or in a file; the undisturbed one has it in memory."""
    run, study = tiny_run(), undisturbed / "study"
    folder, other = results / run.folder, undisturbed / "results" / run.folder
    at = kill_in_the_middle(training(results, study, floral), folder)
    assert 1 <= at < CHANGE["rounds"]
    finish(training(results, study, floral))
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_s_signal_leaves_a_checkpoint_and_the_code_that_asks_to_be_continued(results, undisturbed, number):
    run, study = tiny_run(), undisturbed / "study"
    folder, other = results / run.folder, undisturbed / "results" / run.folder
    process = training(results, study)
    while not (folder / "checkpoint" / "last.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    before, spent = children_seconds(), sum(psutil.Process(process.pid).cpu_times()[:2])
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert children_seconds() - before - spent < 5, "5 s of its own, on however busy a machine"
    assert process.returncode == main.CONTINUE == 75, said
    assert json.loads((folder / "failure.json").read_text())["reason"] == "interrupted"
    finish(training(results, study))
    assert (folder / "metrics.parquet").read_bytes() == (other / "metrics.parquet").read_bytes()
    assert same_model(folder, other) and not (folder / "failure.json").exists()


def children_seconds() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def same_model(folder: Path, other: Path) -> bool:
    """Whether the final states are bit-equal: of one file, or of the two that a store leaves."""
    if not (folder / NAME).exists():
        return (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    rest, private, whole = (
        load_file(path) for path in (folder / "model.safetensors", folder / NAME, other / "model.safetensors")
    )
    assert not set(rest) & set(private) and set(rest | private) == set(whole)
    return all(torch.equal((rest | private)[name], tensor) for name, tensor in whole.items())

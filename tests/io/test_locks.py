"""One process at a time, and none that waits for a dead one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from floral.io import locks
from floral.io.locks import busy, held, leased, take_place

HOLD = """
import sys, time
from pathlib import Path
from floral.io.locks import held
with held(Path(sys.argv[1]), "at work"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(lock: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_the_second_waits_and_says_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "folder" / ".lock"
    with holder(lock, 0.5) as first:
        assert busy(lock)
        with held(lock, "at work"):
            assert first.wait(timeout=5) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{lock.parent}: process {first.pid} on ") and said.endswith(" is at work; waiting for it\n")
    assert not busy(lock)


def test_a_lock_dies_with_its_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / ".lock"
    assert not busy(lock) and not lock.exists()
    with holder(lock, 60) as killed:
        killed.kill()
        killed.wait()
    assert not busy(lock)
    with held(lock, "at work"):
        assert busy(lock)
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------------------- places on GPUs

LEASE = """
import os, sys, time
from pathlib import Path
from floral.io import locks
locks.POLL_INTERVAL_S = 0.01
folder, devices, places, seconds, turns = sys.argv[1:]
log = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for _ in range(int(turns)):
    with locks.leased(devices.split(), int(places), Path(folder)) as index:
        os.write(log, f"{devices.split()[index]} +1\\n".encode())
        print("holds", index, flush=True)
        time.sleep(float(seconds))
        os.write(log, f"{devices.split()[index]} -1\\n".encode())
"""


def lessee(folder: Path, devices: str, places: int, seconds: float = 60, turns: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LEASE, str(folder), devices, str(places), str(seconds), str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def index_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline().removeprefix("holds "))


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_every_gpu_has_a_run_before_one_has_two(tmp_path: Path) -> None:
    """The second process sees the same GPUs in another order, as CUDA_VISIBLE_DEVICES=1,0 lets it."""
    processes = []
    for devices, index in (("a b", 0), ("b a", 0), ("a b", 0), ("a b", 1)):
        processes.append(lessee(tmp_path, devices, 2))
        assert index_of(processes[-1]) == index
    assert take_place(["a", "b"], 2, tmp_path) is None
    for process in processes:
        kill(process)


def test_a_killed_run_gives_its_place_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed = lessee(tmp_path, "a", 1)
    assert index_of(killed) == 0
    assert take_place(["a"], 1, tmp_path) is None
    kill(killed)
    with leased(["a"], 1, tmp_path) as index:
        assert index == 0
        assert take_place(["a"], 1, tmp_path) is None
    assert capsys.readouterr().out == ""


def test_of_many_runs_no_more_than_have_room_are_on_a_gpu(tmp_path: Path) -> None:
    """Six processes on two GPUs with two places each; one more is killed while it holds a place."""
    killed = lessee(tmp_path, "a b", 2)
    index = index_of(killed)  # before the others come: it might wait for them
    others = [lessee(tmp_path, "a b", 2, seconds=0.1, turns=4) for _ in range(6)]
    with (tmp_path / "log").open("a") as log:
        log.write(f"{'ab'[index]} -1\n")
    kill(killed)
    for process in others:
        said, _ = process.communicate(timeout=60)
        assert (process.returncode, said.count("holds")) == (0, 4)
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for line in (tmp_path / "log").read_text().splitlines():
        device, change = line.split()
        now[device] += int(change)
        most[device] = max(most[device], now[device])
    assert now == {"a": 0, "b": 0}
    assert most == {"a": 2, "b": 2}


def test_who_waits_for_a_place_says_so_once(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(locks, "POLL_INTERVAL_S", 0.01)
    with lessee(tmp_path, "a", 1, seconds=0.3) as first:
        assert index_of(first) == 0
        with leased(["a"], 1, tmp_path):
            first.wait(timeout=5)
    assert capsys.readouterr().out == f"{tmp_path}: all places are taken (1 GPUs, 1 runs on each); waiting\n"

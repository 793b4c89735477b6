"""One process at a time, and none that waits for a dead one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from floral.stages.locks import busy, held

HOLD = """
import sys, time
from pathlib import Path
from floral.stages.locks import held
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

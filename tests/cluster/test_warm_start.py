"""Training as a fork of a warm process is training: equal bits, and every way to stop it stops it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from projects import BIN, Project, environment

from floral.cluster.warm_start import ADDRESS, WarmStart, ask

if not WarmStart.possible():
    pytest.skip("pidfd_open, which Linux has, is missing", allow_module_level=True)

FOLDER = "results/train/digits_rotate/fedavg/*"
RUN = ("--suite", "tiny", "--task", "digits_rotate", "--variant", "fedavg", "--seed", "0")
TRAIN = ("train", *RUN, "--threads", "1", "--device", "cpu")
LONG = ("rounds: 2,", "rounds: 100000,")


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[WarmStart]:
    """A process that forks, whose address the environment has."""
    monkeypatch.delenv(ADDRESS, raising=False)
    process = WarmStart("floral.cli.start")
    yield process
    process.close()


def called(project: Project, **more: str) -> subprocess.Popen[str]:
    warm = {ADDRESS: os.environ[ADDRESS]} if ADDRESS in os.environ else {}
    return subprocess.Popen(
        [BIN / "floral", *TRAIN], cwd=project.folder, env=environment(**{**warm, **more}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """The environment of a caller that cannot train itself."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "torch.py").write_text("raise ImportError('the caller is to ask a fork')\n")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "none"), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}


def long(project: Project) -> Project:
    """The same with a run that does not end while a test lasts."""
    suite = project.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace(*LONG))
    shutil.rmtree(project.folder / "results/train")
    return project


def begun(project: Project) -> Path:
    """The run's folder, once its rounds go on."""
    return until(lambda: next(iter(project.paths(f"{FOLDER}/segments/*")), None)).parents[1]


def until(there: Callable[[], Path | None]) -> Path:
    for _ in range(600):
        if found := there():
            return found
        time.sleep(0.1)
    raise AssertionError("not within a minute")


def is_held(folder: Path) -> bool:
    from floral.io.locks import busy

    return busy(folder / ".lock")


def test_a_fork_lacks_no_thread_but_the_one_of_polars(
    copy: Project, warm: WarmStart, without_torch: dict[str, str]
) -> None:
    (copy.folder / "config/suites/tiny.yaml").write_text("runs: []\n")
    called(copy, **without_torch).communicate(timeout=60)
    threads = Path(f"/proc/{warm.process.pid}/task").iterdir()
    names = [(thread / "comm").read_text().strip() for thread in threads if int(thread.name) != warm.process.pid]
    assert names == ["polars-ooc-clea"]  # Linux keeps 15 characters


def test_a_fork_writes_the_same_bytes(copy: Project, warm: WarmStart, without_torch: dict[str, str]) -> None:
    """As a suite too small for a warm process."""
    before = copy.path(f"{FOLDER}/metrics.parquet").read_bytes()
    for left in ("summary.json", "metrics.parquet", "done"):
        copy.path(f"{FOLDER}/{left}").unlink()
    run = called(copy, **without_torch)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "digits_rotate fedavg seed 0: done" in said, said
    assert copy.path(f"{FOLDER}/metrics.parquet").read_bytes() == before


def test_a_mistake_has_its_words_and_its_exit_code(
    copy: Project, warm: WarmStart, without_torch: dict[str, str]
) -> None:
    (copy.folder / "config/suites/tiny.yaml").write_text("runs: []\n")
    run = called(copy, **without_torch)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 2 and "config/suites/tiny.yaml" in said, said


def test_where_nobody_answers_the_caller_trains_itself(copy: Project, tmp_path: Path) -> None:
    copy.path(f"{FOLDER}/summary.json").unlink()
    run = called(copy, **{ADDRESS: str(tmp_path / "nobody")})
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "fedavg seed 0: done" in said, said


def test_a_signal_to_the_caller_leaves_a_checkpoint(
    copy: Project, warm: WarmStart, without_torch: dict[str, str]
) -> None:
    run = called(long(copy), **without_torch)
    folder = begun(copy)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 75, said
    assert list(folder.glob("checkpoint/*.safetensors")) and not is_held(folder)


def test_a_caller_that_is_killed_takes_its_fork_with_it(
    copy: Project, warm: WarmStart, without_torch: dict[str, str]
) -> None:
    run = called(long(copy), **without_torch)
    folder = begun(copy)
    assert is_held(folder)
    run.kill()
    run.communicate(timeout=30)
    until(lambda: None if is_held(folder) else folder)
    assert not (folder / "failure.json").exists()


def test_runs_go_on_when_their_snakemake_ends_and_the_process_ends_with_them(
    copy: Project, warm: WarmStart, without_torch: dict[str, str]
) -> None:
    run = called(long(copy), **without_torch)
    folder = begun(copy)
    assert warm.process.stdin is not None
    warm.process.stdin.close()
    until(lambda: None if Path(os.environ[ADDRESS]).exists() else folder)
    assert is_held(folder) and warm.process.poll() is None
    run.terminate()
    run.communicate(timeout=30)
    assert run.returncode == 75 and warm.process.wait(timeout=30) == 0


def test_a_killed_process_that_forks_is_said(copy: Project, warm: WarmStart, without_torch: dict[str, str]) -> None:
    run = called(long(copy), **without_torch)
    folder = begun(copy)
    warm.process.kill()
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 1 and "repeat the command to continue" in said, said
    until(lambda: None if is_held(folder) else folder)


def test_what_nobody_catches_is_said() -> None:
    """A fork ends at once, whatever happens in it, and not in silence."""
    broken = (
        "import os\nfrom floral.cluster import warm_start\n"
        "def main(): raise RuntimeError('nobody catches this')\n"
        "command = main\n"
        "request = {'environment': dict(os.environ), 'folder': '.', 'arguments': []}\n"
        "warm_start._run_fork(request, [0, 1, 2], {}, command)\n"
    )
    fork = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, timeout=60)
    assert fork.returncode == 1 and "RuntimeError: nobody catches this" in fork.stderr


def test_a_signal_to_all_leaves_a_checkpoint(copy: Project, warm: WarmStart, without_torch: dict[str, str]) -> None:
    """As when a machine shuts down: the process that forks waits for its forks."""
    run = called(long(copy), **without_torch)
    folder = begun(copy)
    warm.process.terminate()
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 75 and list(folder.glob("checkpoint/*.safetensors")), said


def test_who_stops_in_mid_request_and_code_that_is_newer_are_not_served(tmp_path: Path) -> None:
    (folder := tmp_path / "w").mkdir()
    changing = (
        "import itertools, socket, sys\nfrom floral.cluster import warm_start\n"
        "times = itertools.count()\n"
        "warm_start.newest, warm_start.PATIENCE = lambda: next(times), 0.1\n"
        "warm_start.serve(socket.socket(fileno=int(sys.argv[1])), sys.stdin.buffer, (), lambda: 0)\n"
    )
    with socket.socket(socket.AF_UNIX) as door, socket.socket(socket.AF_UNIX) as stopped:
        door.bind(str(folder / "s"))
        door.listen()
        command = [sys.executable, "-c", changing, str(door.fileno())]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[door.fileno()])
        stopped.connect(str(folder / "s"))
        assert ask(str(folder / "s"), ["train"]) is None
        server.communicate(timeout=30)
    assert server.returncode == 0 and not folder.exists()

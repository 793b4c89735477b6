"""How the command `floral` starts: cold, or as a fork of a process that has imported torch already.

Importing takes longer than training a small run. So Snakemake's main process, where it makes runs on this machine,
keeps one process that has imported what training needs (`Warm`); `floral train` hands its arguments, environment,
folder and files over to it and waits for the fork's exit code. All else is as if the caller had trained itself: its
signals reach the fork, a fork whose caller is killed is killed, and where there is nobody to ask the caller trains
itself, as it does on a GPU or with several threads. Nothing is seeded, computed or opened before the fork, so that
results have equal bits. The process ends with its Snakemake; once the package has newer code, callers train themselves.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from floral.core.process import library_threads

ADDRESS = "FLORAL_WARM"
"""The environment variable with the socket of the process that forks."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE = 10.0
"""Seconds in which who asks is to have said what it wants; meanwhile nobody else is served."""
WORTH = 4
"""Runs from which on the process repays its own start."""
ROOM = 8
"""Bytes of a number that is sent."""


# --------------------------------------------------------------------------------------------- who asks


def ask(address: str, arguments: list[str]) -> int | None:
    """The exit code of a fork that did the command; None where nobody took it."""
    told = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    content = json.dumps(told).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
            socket.send_fds(server, [_number(len(content))], [0, 1, 2])
            server.sendall(content)
            pid = _receive(server)
        except OSError:
            return None
        if pid is None:
            return None
        for name in FORWARDED:
            signal.signal(name, lambda number, frame: _send(pid, number))
        code = _receive(server)
    if code is None:  # killed, and the fork was not told
        _send(pid, signal.SIGKILL)
        raise SystemExit(f"floral {arguments[0]}: the process that forks ended; the same command continues")
    return code


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _number(value: int) -> bytes:
    return value.to_bytes(ROOM, "big", signed=True)


def _receive(connection: socket.socket) -> int | None:
    """A number; None where the other side is gone."""
    try:
        found = connection.recv(ROOM, socket.MSG_WAITALL)
    except ConnectionError:
        return None
    return int.from_bytes(found, "big", signed=True) if len(found) == ROOM else None


# -------------------------------------------------------------------------------------------- who forks


class Warm:
    """The process that forks, as its starter sees it; it ends with its starter, however that ends, and with its forks.

    A fork holds no pipe of the starter, so that the end of the starter is seen while runs go on.
    """

    def __init__(self, module: str) -> None:
        """`module` calls `serve` with the number of its socket, when it is run with `python -m`."""
        self.folder = Path(tempfile.mkdtemp(prefix="floral-"))
        environment = {key: value for key, value in os.environ.items() if key != ADDRESS}
        environment |= library_threads(1)  # forks compute on one thread
        environment |= {"_RJEM_MALLOC_CONF": "background_thread:false"}
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.bind(str(self.folder / "socket"))
                door.listen(64)  # who asks now waits while torch is imported
                self.process: subprocess.Popen[bytes] = subprocess.Popen(
                    # -P: the package that is installed, whatever lies in this folder
                    [sys.executable, "-P", "-m", module, str(door.fileno())],
                    stdin=subprocess.PIPE,
                    env=environment,
                    pass_fds=[door.fileno()],
                    start_new_session=True,  # Ctrl-C is for those who ask, and they hand it on
                )
        except OSError:
            shutil.rmtree(self.folder)
            raise
        os.environ[ADDRESS] = str(self.folder / "socket")

    def close(self) -> None:
        """Let it end; wait until it has, and its forks with it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        os.environ.pop(ADDRESS, None)
        shutil.rmtree(self.folder, ignore_errors=True)  # where it was killed

    @staticmethod
    def possible() -> bool:
        """Whether this system tells the end of a fork through a file, as Linux does from 5.3 on where it is allowed."""
        if not hasattr(os, "pidfd_open"):
            return False
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:
            return False
        return True


def serve(door: socket.socket, starter: IO[Any], preload: Sequence[str], command: Callable[[], int]) -> None:
    """Fork for everyone who asks at the `door`, until `starter` is closed and the last fork has ended.

    A signal to all processes is for the forks, which write their checkpoints: this one waits for them.
    """
    read, usual = newest(), {name: signal.signal(name, lambda number, frame: None) for name in FORWARDED}
    with door, selectors.DefaultSelector() as events:
        for module in preload:
            importlib.import_module(module)
        events.register(door, selectors.EVENT_READ)
        events.register(starter, selectors.EVENT_READ)
        forks: dict[int, tuple[int, socket.socket]] = {}  # file that tells its end → the fork, and who asked for it
        opened = True
        while opened or forks:
            for key, _ in events.select():
                if key.fileobj is starter:
                    events.unregister(starter)
                    events.unregister(door)
                    shutil.rmtree(Path(door.getsockname()).parent, ignore_errors=True)
                    door.close()  # who waits at it trains itself
                    opened = False
                elif key.fileobj is door:
                    if opened and (asked := _begin(door, read, usual, command)):
                        end, pid, connection = asked
                        forks[end] = pid, connection
                        events.register(end, selectors.EVENT_READ)
                        events.register(connection, selectors.EVENT_READ, end)
                elif key.data is None:
                    _end(forks, key.fd, events)
                elif key.data in forks and forks[key.data][1] is key.fileobj:  # who asked is gone
                    events.unregister(key.fileobj)
                    _send(forks[key.data][0], signal.SIGKILL)


def newest() -> int:
    """When the package's code was last changed, in nanoseconds."""
    return max(path.stat().st_mtime_ns for path in Path(__file__).parents[1].rglob("*.py"))


def _begin(
    door: socket.socket, read: int, usual: Mapping[signal.Signals, Any], command: Callable[[], int]
) -> tuple[int, int, socket.socket] | None:
    """Fork for the next who asks: the file that tells its end, its process and the connection.

    Nobody is served, and trains itself, with code that is newer than what was `read`, or when there can be no fork.
    """
    connection, _ = door.accept()
    files: list[int] = []
    try:
        connection.settimeout(PATIENCE)
        size, files, _, _ = socket.recv_fds(connection, ROOM, 3)
        content = b""
        length = int.from_bytes(size, "big", signed=True)
        while len(content) < length and (part := connection.recv(length - len(content))):
            content += part
        told = json.loads(content)
        connection.settimeout(None)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until the fork heeds them as who asked does
        pid = os.fork() if newest() == read else None
    except (OSError, ValueError):  # killed or stopped while it asked; or the system has no room for a process
        pid = None
    if pid == 0:
        _be(told, files, usual, command)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    for file in files:
        os.close(file)
    if pid is None:
        connection.close()
        return None
    end = os.pidfd_open(pid)
    with contextlib.suppress(OSError):  # who asked is gone; the loop sees it
        connection.sendall(_number(pid))
    return end, pid, connection


def _end(forks: dict[int, tuple[int, socket.socket]], end: int, events: selectors.BaseSelector) -> None:
    """Tell who asked the exit code of a fork that has ended: of one that a signal killed as a shell says it."""
    pid, connection = forks.pop(end)
    events.unregister(end)
    os.close(end)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(KeyError):  # unregistered when who asked went away
        events.unregister(connection)
    with contextlib.suppress(OSError):
        connection.sendall(_number(status if status >= 0 else 128 - status))
    connection.close()


def _be(
    told: dict[str, Any], files: list[int], usual: Mapping[signal.Signals, Any], command: Callable[[], int]
) -> None:
    """The fork: what who asked would have been."""
    code = 1
    try:
        os.setpgid(0, 0)
        for name, handler in usual.items():
            signal.signal(name, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        for at, file in enumerate(files):
            os.dup2(file, at)
        for file in [int(path.name) for path in Path("/proc/self/fd").iterdir() if int(path.name) > 2]:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.close(file)  # the others' connections among them
        os.environ.clear()
        os.environ.update(told["environment"])
        os.chdir(told["folder"])
        sys.argv = ["floral", *told["arguments"]]
        code = command()
    except SystemExit as said:
        code = said.code if isinstance(said.code, int) else 0 if said.code is None else 1
        if isinstance(said.code, str):
            sys.stderr.write(f"{said.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # whatever happens, nothing of the process that forks goes on in its fork
            os._exit(code)

"""Train runs in forks of a server process that has already imported torch.

This saves time, because importing torch takes longer than a small run. In this module, a client is not a client of
federated learning, but a `floral train` process that asks the server for a fork. Snakemake's main process starts one
server (`WarmStart`) if it makes several runs on this machine. The client sends the server its arguments, environment,
folder and open files, and waits for the exit code of the fork (`ask`).

Signals to the client reach the fork, and the fork is killed when the client is killed. In all other respects the fork
behaves as `floral train` without a server. A client trains in its own process if no server answers, if it uses a GPU,
or if it uses several threads. Nothing is seeded, computed or opened before the fork, so that the results are
bit-identical to those without a server. The server ends when Snakemake ends. If the code of the package or of the
study changes, the server makes no more forks.
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

from floral.config import paths
from floral.core.process import library_threads

ADDRESS = "FLORAL_WARM"
"""The environment variable with the path of the server's socket."""
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REQUEST_TIMEOUT_S = 10.0
"""Timeout in seconds for reading one client's request; other clients wait meanwhile."""
MIN_RUNS_FOR_WARM_START = 4
"""With fewer runs, the start of the server costs more time than it saves."""
LENGTH_PREFIX_BYTES = 8
"""Bytes of each integer that is sent through the socket."""


# --------------------------------------------------------------------------------------------- client


def ask(address: str, arguments: list[str]) -> int | None:
    """Run a command in a fork of the server, and return the exit code. Return None if no server accepts the request.

    The server is a process that has already imported torch.
    """
    request = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
            socket.send_fds(server, [_encode(len(content))], [0, 1, 2])
            server.sendall(content)
            pid = _receive_number(server)
        except OSError:
            return None
        if pid is None:
            return None
        for name in FORWARDED_SIGNALS:
            signal.signal(name, lambda number, frame: _send_signal(pid, number))
        code = _receive_number(server)
    if code is None:  # the server was killed, so it could not end the fork
        _send_signal(pid, signal.SIGKILL)
        raise SystemExit(
            f"floral {arguments[0]}: the process in which this run trained was killed; repeat the command to continue"
        )
    return code


def _send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # the process has just ended
        os.kill(pid, number)


def _encode(value: int) -> bytes:
    return value.to_bytes(LENGTH_PREFIX_BYTES, "big", signed=True)


def _receive_number(connection: socket.socket) -> int | None:
    """Receive an integer through the socket; None if the other process closed the connection."""
    try:
        content = connection.recv(LENGTH_PREFIX_BYTES, socket.MSG_WAITALL)
    except ConnectionError:
        return None
    return int.from_bytes(content, "big", signed=True) if len(content) == LENGTH_PREFIX_BYTES else None


# --------------------------------------------------------------------------------------------- server


class WarmStart:
    """The server process that trains runs in forks of itself, as an object of the process that started it.

    The server has already imported torch, so a fork starts faster than a new process. The server ends after the
    starting process and the last fork have ended, even if the starting process was killed.

    The server knows this from a pipe, which the system closes when the starting process ends. Forks do not inherit the
    pipe, so it closes although forks are still running.
    """

    def __init__(self, module: str) -> None:
        """Start the server with the command `python -m module`.

        The argument of the command is the file descriptor of the socket. The module must call `serve`.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="floral-"))
        environment = {key: value for key, value in os.environ.items() if key != ADDRESS}
        environment |= library_threads(1)  # forks compute on one thread
        environment |= {"_RJEM_MALLOC_CONF": "background_thread:false"}
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(self.folder / "socket"))
                listener.listen(64)  # clients wait while the server imports torch
                self.process: subprocess.Popen[bytes] = subprocess.Popen(
                    # -P: import the installed package, not modules of the current folder
                    [sys.executable, "-P", "-m", module, str(listener.fileno())],
                    stdin=subprocess.PIPE,
                    env=environment,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,  # Ctrl-C reaches the clients only, which forward it
                )
        except OSError:
            shutil.rmtree(self.folder)
            raise
        os.environ[ADDRESS] = str(self.folder / "socket")

    def close(self) -> None:
        """End the server, and wait until the server and its forks have ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        os.environ.pop(ADDRESS, None)
        shutil.rmtree(self.folder, ignore_errors=True)  # left over if the server was killed

    @staticmethod
    def possible() -> bool:
        """Return whether this system can use the server: it needs pidfd_open, as in Linux 5.3 and later versions.

        pidfd_open tells the server when a fork has ended.
        """
        if not hasattr(os, "pidfd_open"):
            return False
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:
            return False
        return True


def serve(listener: socket.socket, starter: IO[Any], preload: Sequence[str], command: Callable[[], int]) -> None:
    """Import the modules `preload`, then make a fork for every `floral train` process that asks for one.

    The pipe `starter` closes when the process that started the server ends. The function returns after that, as soon as
    the last fork has ended. Signals such as SIGTERM do not end the server. A fork that gets a signal writes its
    checkpoint and ends, and the server waits for it.
    """
    loaded, handlers = newest(), {name: signal.signal(name, lambda number, frame: None) for name in FORWARDED_SIGNALS}
    with listener, selectors.DefaultSelector() as events:
        for module in preload:
            importlib.import_module(module)
        events.register(listener, selectors.EVENT_READ)
        events.register(starter, selectors.EVENT_READ)
        forks: dict[int, tuple[int, socket.socket]] = {}  # pidfd of a fork → its process id and the client's connection
        accepting = True
        while accepting or forks:
            for key, _ in events.select():
                if key.fileobj is starter:
                    events.unregister(starter)
                    events.unregister(listener)
                    shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)
                    listener.close()  # clients that wait will train in their own process
                    accepting = False
                elif key.fileobj is listener:
                    if accepting and (fork := _fork(listener, loaded, handlers, command)):
                        pidfd, pid, connection = fork
                        forks[pidfd] = pid, connection
                        events.register(pidfd, selectors.EVENT_READ)
                        events.register(connection, selectors.EVENT_READ, pidfd)
                elif key.data is None:
                    _report_end(forks, key.fd, events)
                elif key.data in forks and forks[key.data][1] is key.fileobj:  # the client was killed
                    events.unregister(key.fileobj)
                    _send_signal(forks[key.data][0], signal.SIGKILL)


def newest() -> int:
    """Return the time of the last change of the code of package and study, in nanoseconds since 1970."""
    folders = [Path(__file__).parents[1], *(paths.STUDY / kind for kind in paths.CODE_FOLDERS)]
    return max(path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.py"))


def _fork(
    listener: socket.socket, loaded: int, handlers: Mapping[signal.Signals, Any], command: Callable[[], int]
) -> tuple[int, int, socket.socket] | None:
    """Make a fork for the next `floral train` process that asks for one (the client).

    Return the fork's pidfd, its process id and the connection to the client. The pidfd is a file descriptor that tells
    the server when the fork ends. Return None if no fork can be made; the client then trains in its own process. There
    are three reasons: the request failed, the system allows no more processes, or the code has changed since the server
    imported it. `loaded` is the time of the last change of the code that the server imported.
    """
    connection, _ = listener.accept()
    files: list[int] = []
    try:
        connection.settimeout(REQUEST_TIMEOUT_S)
        size, files, _, _ = socket.recv_fds(connection, LENGTH_PREFIX_BYTES, 3)
        content = b""
        length = int.from_bytes(size, "big", signed=True)
        while len(content) < length and (part := connection.recv(length - len(content))):
            content += part
        request = json.loads(content)
        connection.settimeout(None)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED_SIGNALS)  # until the fork has its own handlers
        pid = os.fork() if newest() == loaded else None
    except (OSError, ValueError):  # the client was killed or stopped, or the system allows no further process
        pid = None
    if pid == 0:
        _run_fork(request, files, handlers, command)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
    for file in files:
        os.close(file)
    if pid is None:
        connection.close()
        return None
    pidfd = os.pidfd_open(pid)
    with contextlib.suppress(OSError):  # the client was killed; `serve` notices it
        connection.sendall(_encode(pid))
    return pidfd, pid, connection


def _report_end(forks: dict[int, tuple[int, socket.socket]], pidfd: int, events: selectors.BaseSelector) -> None:
    """Send the exit code of a fork to the `floral train` process that asked for it.

    As in a shell, a fork that was killed by signal n has the exit code 128 + n.
    """
    pid, connection = forks.pop(pidfd)
    events.unregister(pidfd)
    os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(KeyError):  # unregistered when the client was killed
        events.unregister(connection)
    with contextlib.suppress(OSError):
        connection.sendall(_encode(status if status >= 0 else 128 - status))
    connection.close()


def _run_fork(
    request: dict[str, Any], files: list[int], handlers: Mapping[signal.Signals, Any], command: Callable[[], int]
) -> None:
    """Run the command in the fork and exit.

    The fork uses the arguments, environment, folder and open files of the `floral train` process that asked for it.
    """
    code = 1
    try:
        os.setpgid(0, 0)
        for name, handler in handlers.items():
            signal.signal(name, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
        for number, file in enumerate(files):
            os.dup2(file, number)
        for file in [int(path.name) for path in Path("/proc/self/fd").iterdir() if int(path.name) > 2]:
            with contextlib.suppress(OSError):  # the file that listed them is closed already
                os.close(file)  # among them the connections of other clients
        # New streams: those of the server remember what kind of file they were opened on.
        sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = ["floral", *request["arguments"]]
        code = command()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # no code of the server may continue in its fork
            os._exit(code)

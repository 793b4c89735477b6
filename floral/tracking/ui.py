"""Show the tracked runs in MLflow's web page."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from floral.config.reading import ConfigError
from floral.core.passwords import without_passwords
from floral.tracking.mlflow_store import default_uri
from floral.tracking.views import address_of_view

HOST = "127.0.0.1"
START_SECONDS = 300.0
"""A server that does not answer after so many seconds is stopped."""


def ui(results: Path, tracking_uri: str | None, port: int) -> int:
    """Start MLflow's server, which shows the runs of a results folder, and return its exit code when it ends.

    When the server answers, the function prints its address, and for each suite the address of the charts that compare
    means over seeds. The address of the database goes through the environment, because it may contain a password, and
    other users of the machine can see command lines.

    Raises:
        ConfigError: no run is tracked yet, `tracking_uri` names a server, the port cannot be used, or the server does
            not start.
    """
    uri = tracking_uri or default_uri(results)
    if uri.startswith("http"):
        raise ConfigError(f"the runs are tracked by an MLflow server; open {without_passwords(uri)} in your browser")
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not database.exists():
        raise ConfigError(f"{database}: no run is tracked yet; call: make quickstart")
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        below = isinstance(error, PermissionError)
        reason = "ports below 1024 are for the administrator" if below else "another program listens there"
        raise ConfigError(f"Port {port} cannot be used: {reason}; choose another: make ui PORT=5001") from None
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_BACKEND_STORE_URI": uri}
    where = ["--host", HOST, "--port", str(port), "--workers", "1"]  # one process is enough for one user
    print("MLflow starts; this takes some seconds", flush=True)
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", *where])
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    address = f"http://{HOST}:{port}"
    _wait(server, address)
    lines = [f"MLflow answers at {address}; Ctrl-C stops it", *comparisons(results, uri, address)]
    print("\n".join(lines), flush=True)
    return _until_end(server)


def comparisons(results: Path, uri: str, address: str) -> list[str]:
    """Return one line for each tracked suite: the address of the charts that compare its methods by their means.

    A suite that only an earlier version has tracked has no such address. Its line says how to get it.
    """
    lines = []
    for path in sorted((results / "track").glob("*.json")):
        tracked = json.loads(path.read_text(encoding="utf-8"))
        if tracked["tracking_uri"] == without_passwords(uri):
            if "view" in tracked:
                address_of_suite = address_of_view(address, tracked["experiment_id"], tracked["view"])
            else:
                address_of_suite = f"tracked by an earlier version; call: floral track {path.stem}"
            lines.append(f"{path.stem}: {address_of_suite}")
    return lines and ["Compare the methods of a suite by their means over seeds:", *lines]


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    """Wait until the server answers.

    Raises:
        ConfigError: the server ended, or did not answer in time.
    """
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    if (code := server.poll()) is None:
        server.terminate()
        server.wait()
    reason = f"did not answer in {START_SECONDS:.0f} s" if code is None else f"ended with exit code {code}"
    raise ConfigError(
        f"MLflow's server {reason}; the messages above say why; remove the cause, and call `make ui` again"
    )


def _until_end(server: subprocess.Popen[bytes]) -> int:
    """Wait until the server ends, and return its exit code: 0 if a signal ended it. Ctrl-C also reaches the server."""
    while True:
        try:
            return max(0, server.wait())
        except KeyboardInterrupt:
            continue

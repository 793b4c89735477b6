"""Show the tracked runs in MLflow's web page."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from floral.config.reading import ConfigError
from floral.core.passwords import without_passwords
from floral.tracking.mlflow_store import default_uri

HOST = "127.0.0.1"


def ui(results: Path, tracking_uri: str | None, port: int) -> NoReturn:
    """Replace this process by MLflow's server, which shows the runs of a results folder at http://127.0.0.1:<port>.

    The address of the database goes through the environment, because it may contain a password, and other users of the
    machine can see command lines.

    Raises:
        ConfigError: no run is tracked yet, `tracking_uri` names a server, or the port cannot be used.
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
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *where])

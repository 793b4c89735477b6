"""Explain errors of the MLflow store: what happened, what to do, and whether a retry may succeed."""

from __future__ import annotations

import re
import shlex
import socket
import sqlite3
from urllib.parse import urlsplit

from floral.config import paths
from floral.config.reading import ConfigError
from floral.core.passwords import place_of_password
from floral.io.files import REMEDIES, remedy

DATABASES = ("postgresql", "mysql", "mssql")
"""Beginnings of the addresses of databases on a server."""
NO_PASSWORD = re.compile("password|authentication|access denied", re.I)
"""Words of a database that refuses the user or the password."""
UNKNOWN = re.compile("does not exist|unknown database", re.I)
"""Words of a database server that has no such database or user."""
OLD_TABLES = "out-of-date database schema"
"""Words of MLflow about a database whose tables are of another version of MLflow."""
SERVE_ARTIFACTS = "start the server with `make ui-server`, or with `mlflow server --serve-artifacts`"


class Unreachable(ConfigError):
    """Raised when the MLflow store does not answer now, for example because its server is down."""


def unusable(uri: str, error: Exception) -> ConfigError:
    """Return the error to raise after MLflow failed with `error`. If a retry may succeed, it is Unreachable."""
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0]
    kind = Unreachable if _is_temporary(uri, error) else ConfigError
    return kind(f"the MLflow store {uri} cannot be written: {reason}; {_remedy(uri, error, text)}")


def _remedy(uri: str, error: Exception, text: str) -> str:
    if "Invalid Host header" in text:
        return (
            "the server does not know the name by which you call it; start it with this name: "
            f"make ui-server ALLOWED={urlsplit(uri).netloc.rpartition('@')[2]} "
            "(for `mlflow server`: --allowed-hosts)"
        )
    if _artifacts_are_refused(text):
        return f"the server does not receive artifacts; {SERVE_ARTIFACTS}"
    if _status(error) in (401, 403):
        return f"the server asks for a user and a password: {place_of_password(uri)}"
    if uri.startswith(DATABASES) and NO_PASSWORD.search(text):
        return f"the database asks for a password: {place_of_password(uri)}"
    if OLD_TABLES in text:
        upgrade = f"back the database up, then call: mlflow db upgrade {shlex.quote(uri)}"
        rebuild = "; or move the file away (the store is rebuilt from the run folders)"
        return upgrade + (rebuild if uri.startswith("sqlite:") else "")
    setting = f"`tracking_uri` in {paths.CONFIG_FOLDER}/config.yaml"
    if uri.startswith("http"):
        return f"start the server, or correct {setting}"
    if "disk is full" in text:  # SQLite's words
        return f"free space there, then repeat the same command, or set {setting}"
    if place := remedy(error):
        return f"{place} (set {setting})"
    return (
        "make it writable, or move the file away (the store is rebuilt from the run folders), or set " + setting
        if uri.startswith("sqlite:")
        else f"start the database, or correct {setting}"
    )


def _artifacts_are_refused(text: str) -> bool:
    """Return whether a server with `--no-serve-artifacts` refused a file. It then answers with the status 503."""
    return "serve-artifacts" in text or ("/mlflow-artifacts/" in text and "503" in text)


def _is_temporary(uri: str, error: BaseException) -> bool:
    """Return whether a retry may succeed, because the server is down or busy, or the database is locked."""
    if isinstance(original := getattr(error, "orig", None), BaseException):  # SQLAlchemy wraps the database's error
        return _is_temporary(uri, original)
    if uri.startswith(DATABASES) and (NO_PASSWORD.search(str(error)) or UNKNOWN.search(str(error))):
        return False
    if isinstance(error, sqlite3.Error):
        return "locked" in str(error) or "busy" in str(error)
    if isinstance(error, OSError):
        return error.errno not in REMEDIES and not isinstance(error, FileNotFoundError | ValueError)
    if _artifacts_are_refused(str(error)):
        return False
    # Without a server, MLflow gives the status 503 to the errors of a database that is down, and 500 to all others.
    return type(error).__name__ == "OperationalError" or _status(error) >= (500 if uri.startswith("http") else 503)


def _status(error: BaseException) -> int:
    """Return the HTTP status of an error: of the server's answer, or the status that MLflow chose; 0 without any."""
    if (answer := getattr(error, "response", None)) is not None:
        return int(answer.status_code)
    status = getattr(error, "get_http_status_code", None)  # all errors of MLflow have it, also without a server
    return 0 if status is None else int(status())


def check_artifact_place(uri: str, suite: str, location: str) -> None:
    """Check that this machine can send artifacts (result files) to the place that the server has chosen.

    `location` is a path if the server does not receive artifacts itself. Each client then writes to this path on its
    own disk. Nothing shows whether the server reads the same disk.

    Raises:
        ConfigError: `location` is a path, and the server is another machine.
    """
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
    if urlsplit(location).scheme in ("", "file") and urlsplit(uri).hostname not in names:
        raise ConfigError(
            f"the MLflow server {uri} does not receive artifacts: it stores those of {suite!r} in {location} on its "
            f"own disk; {SERVE_ARTIFACTS}, then rename the experiment {suite!r}, which keeps its old place"
        )

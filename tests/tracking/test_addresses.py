"""Addresses of MLflow: passwords are hidden, and an error of the server names its remedy."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from projects import ROOT, Project

from floral.cli import main
from floral.config.reading import ConfigError, parse
from floral.config.settings import Settings, read_settings
from floral.core.passwords import without_passwords
from floral.tracking import ui
from floral.tracking.mlflow_errors import Unreachable, check_artifact_place, unusable

PASSWORD = "s3cretpw"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:s3cretpw@host:5000/x", "http://user:***@host:5000/x"),
        ("https://user:s3c@retpw/x@host", "https://user:***@host"),
        ("https://s3cretpw@host", "https://***@host"),
        ("http://me@uni.de:s3cretpw@host", "http://me@uni.de:***@host"),
        ("postgresql://me@uni.de:s3cretpw@host/db", "postgresql://me@uni.de:***@host/db"),
        ("http://:s3cretpw@host", "http://:***@host"),
        ("postgresql+psycopg2://user:s3cretpw@host/db", "postgresql+psycopg2://user:***@host/db"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://host/db?user=u&password=s3cretpw&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        (
            "see http://user:s3cretpw@host, then 'http://a:s3cretpw@b'",
            "see http://user:***@host, then 'http://a:***@b'",
        ),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////folder/a@b.db", "sqlite:////folder/a@b.db"),
    ],
)
def test_a_password_is_hidden(address: str, shown: str) -> None:
    assert without_passwords(address) == shown == str(ConfigError(address))
    assert without_passwords(shown) == shown


def test_an_address_with_a_password_is_found_nowhere(project: Project) -> None:
    """Nothing listens there, so that tracking fails and everything that may be printed is printed."""
    address = f"tracking_uri=http://user:{PASSWORD}@127.0.0.1:9"
    call = project.call(
        "snakemake", "--profile", "local", "--config", "suite=tiny", "variants=[fedavg]", address,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )  # fmt: skip
    assert call.returncode == 1 and "http://user:***@127.0.0.1:9 cannot be written" in call.stdout, call.stdout
    assert "MLFLOW_TRACKING_USERNAME" in call.stdout and "Traceback" not in call.stdout
    assert PASSWORD not in call.stdout and len(project.paths("results/train/*/fedavg/*/done")) == 1
    written = [path for path in project.folder.rglob("*") if path.is_file()]
    assert len(written) > 100 and not [path for path in written if PASSWORD.encode() in path.read_bytes()]


def test_a_rejected_address_hides_its_password() -> None:
    with pytest.raises(ConfigError) as refused:
        parse(Settings, {"suite": ["a"], "tracking_uri": [f"http://user:{PASSWORD}@host"]}, "config.yaml")
    assert PASSWORD not in str(refused.value) and "tracking_uri: must be text" in str(refused.value)
    for wrong in (f"user:{PASSWORD}@host:5000", f"htp://user:{PASSWORD * 9}@host", f"http://user:my {PASSWORD}@host"):
        with pytest.raises(ConfigError, match="tracking_uri: this is no address") as refused:
            parse(Settings, {"suite": ["a"], "tracking_uri": wrong}, "config.yaml")
        assert PASSWORD not in str(refused.value)


def test_an_unexpected_error_hides_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def crash(*_: Any) -> None:
        raise ZeroDivisionError(f"http://user:{PASSWORD}@host")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("floral.runs.reference.available", crash)
    assert main.main(["plan", "quickstart"]) == main.FAILED
    assert "http://user:***@host" in (shown := capsys.readouterr().err) and "Traceback" in shown
    assert "ZeroDivisionError" in caplog.text and PASSWORD not in shown + caplog.text


@pytest.mark.parametrize("address", ["nonsense", "/folder", "ftp://host", "file:///folder", "http://", "http:///x", ""])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="tracking_uri: this is no address of MLflow"):
        read_settings({"tracking_uri": address})


class ServerError(Exception):
    """A stand-in for an error of MLflow."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    def get_http_status_code(self) -> int:
        return self.status


class WrappedError(Exception):
    """A stand-in for an error of SQLAlchemy, with the error of the database."""

    def __init__(self, orig: Exception) -> None:
        super().__init__(str(orig))
        self.orig = orig


HTTP, SQLITE, POSTGRES = "http://host:5000", "sqlite:////r/mlflow.db", "postgresql://u:x@h/db"
OLD_TABLES = ServerError(500, "Detected out-of-date database schema (found version a, but expected b). Take a backup")
"""MLflow raises it on this machine, and no server answers."""


@pytest.mark.parametrize(
    ("uri", "error", "temporary", "words"),
    [
        (HTTP, ServerError(403, "Invalid Host header - possible DNS"), False, "make ui-server ALLOWED=host:5000"),
        (HTTP, ServerError(401, "no"), False, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (HTTP, ServerError(403, "no"), False, "MLFLOW_TRACKING_USERNAME"),
        (HTTP, ServerError(503, "busy"), True, "start the server"),
        (HTTP, ServerError(500, "/mlflow-artifacts/a: too many 503 error responses"), False, "--serve-artifacts"),
        (HTTP, ServerError(503, "disabled: running with `--no-serve-artifacts`"), False, "make ui-server"),
        (HTTP, ConnectionError("refused"), True, "start the server"),
        (HTTP, PermissionError(13, "no", "/srv/mlruns"), False, "start the server"),
        (SQLITE, sqlite3.OperationalError("database is locked"), True, "make it writable"),
        (SQLITE, WrappedError(sqlite3.OperationalError("database is locked")), True, "make it writable"),
        (SQLITE, WrappedError(sqlite3.OperationalError("unable to open database file")), False, "make it writable"),
        (SQLITE, sqlite3.OperationalError("attempt to write a readonly database"), False, "make it writable"),
        (SQLITE, OSError(28, "No space left", "/r/mlflow.db.lock"), False, "/r/mlflow.db.lock: the disk is full"),
        (SQLITE, OSError(30, "Read-only", "/r/mlflow.db.lock"), False, "read-only"),
        (SQLITE, OLD_TABLES, False, "mlflow db upgrade sqlite:////r/mlflow.db; or move the file away"),
        (POSTGRES, OLD_TABLES, False, "back the database up, then call: mlflow db upgrade postgresql://u:***@h/db"),
        (POSTGRES, OSError("down"), True, "start the database"),
        (POSTGRES, ServerError(503, "connection refused"), True, "start the database"),
        (POSTGRES, ServerError(503, 'database "db" does not exist'), False, "correct `tracking_uri`"),
        (POSTGRES, ServerError(503, "password authentication failed"), False, "PGPASSWORD, or write the password into"),
        (POSTGRES, WrappedError(sqlite3.OperationalError("no password supplied")), False, "~/.pgpass"),
        ("mysql://u:x@h/db", ServerError(503, "Access denied for user 'u'"), False, "FLORAL_TRACKING_URI"),
    ],
)
def test_an_error_of_the_store_names_its_remedy(uri: str, error: Exception, temporary: bool, words: str) -> None:
    raised = unusable(uri, error)
    assert words in str(raised) and isinstance(raised, Unreachable) == temporary
    assert ("MLFLOW_TRACKING_USERNAME" in str(raised)) == (uri == HTTP and "MLFLOW" in words)


@pytest.mark.parametrize("location", ["/srv/mlruns/1", "file:///srv/mlruns/1", "mlruns/1"])
def test_artifacts_on_the_disk_of_another_machine_are_refused(location: str) -> None:
    with pytest.raises(ConfigError, match=r"does not receive artifacts.*make ui-server.*rename the experiment 'tiny'"):
        check_artifact_place("http://user:x@tracker.example.org:5000", "tiny", location)
    check_artifact_place("http://localhost:5000", "tiny", location)
    check_artifact_place("http://tracker.example.org:5000", "tiny", "mlflow-artifacts:/1")
    check_artifact_place("http://tracker.example.org:5000", "tiny", "s3://bucket/1")


START = subprocess.Popen


def answering(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let a small program take the place of MLflow's server. It gets the port as its last argument."""

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        assert PASSWORD not in str(command) and PASSWORD in os.environ["MLFLOW_BACKEND_STORE_URI"]
        return START([sys.executable, "-S", "-c", program, command[command.index("--port") + 1]])

    monkeypatch.setattr(ui.subprocess, "Popen", start)


SERVER = """
import http.server, sys, time
class Once(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        assert self.path == "/health"
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
time.sleep(0.5)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Once).handle_request()
sys.exit(3)
"""


def test_the_ui_says_when_it_answers_and_where_means_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, SERVER)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    uri = f"postgresql://user:{PASSWORD}@host/db"
    (tmp_path / "track").mkdir()
    here, view = without_passwords(uri), {"view": "means"}
    for suite, store, more in (("tiny", here, view), ("elsewhere", "http://host:5000", view), ("earlier", here, {})):
        value = {"tracking_uri": store, "experiment_id": "7", "runs": {}, **more}
        (tmp_path / "track" / f"{suite}.json").write_text(json.dumps(value))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert ui.ui(tmp_path, uri, port) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"MLflow answers at http://127.0.0.1:{port}; Ctrl-C stops it"
    means = "viewStateShareKey=means&compareRunsMode=CHART"
    assert said[3:] == [
        "earlier: tracked by an earlier version; call: floral track earlier",
        f"tiny: http://127.0.0.1:{port}/#/experiments/7/runs?{means}",
    ]
    answering(monkeypatch, "import sys; sys.exit(4)")
    with pytest.raises(ConfigError, match="ended with exit code 4"):
        ui.ui(tmp_path, uri, port)
    assert "answers" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"open http://u:\*\*\*@host in your browser"):
        ui.ui(tmp_path, f"http://u:{PASSWORD}@host", 0)


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError(13, "no"), "ports below 1024 are for the"), (OSError(98, "no"), "another program listens there")],
)
def test_a_port_that_cannot_be_used_says_why(error: OSError, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise error

    monkeypatch.setattr(ui.socket, "create_server", refuse)
    with pytest.raises(ConfigError, match=f"Port 80 cannot be used: {words}.*make ui PORT=5001"):
        ui.ui(Path("results"), POSTGRES, 80)

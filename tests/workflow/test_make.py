"""`make` in a project whose path has a space, and with folders of results and reports elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from projects import BIN, ROOT, environment

SCRIPTS = {
    "python": f'exec "{BIN}/python" "$@"',
    "snakemake": 'echo "cache: $XDG_CACHE_HOME"',
    "mlflow": "printf '%s\\n' \"$@\"",
}
"""Stand-ins for programs in .venv/bin."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "my project"
    shutil.copytree(ROOT / "config", folder / "config")
    shutil.copy(ROOT / "Makefile", folder)
    for path in (folder / "pyproject.toml", folder / "constraints.txt", folder / ".venv/.installed"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return folder


def make(project: Path, *arguments: str, **variables: str) -> str:
    """Call make and return what it prints, also if it fails."""
    call = subprocess.run(
        ["make", *arguments], cwd=project, env=environment(**variables), text=True, timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return call.stdout


def test_make_ui_serves_the_results_of_the_settings(project: Path, tmp_path: Path, made_store: Path) -> None:
    (project / ".venv/bin").symlink_to(BIN)
    results = tmp_path / "my $HOME results"
    places = {"FLORAL_RESULTS": str(results), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    assert f"{results}/track/mlflow.db: no run is tracked yet" in make(project, "ui", **places)
    shutil.copytree(made_store, results / "track")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"Port {port} cannot be used: another program" in make(project, "ui", f"PORT={port}", **places)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            ["make", "ui", f"PORT={port}"], cwd=project, env=environment(**places), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not answers(port):
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.read() == b"OK"
    except OSError:
        return False


def test_make_uses_the_folders_of_the_settings(project: Path, tmp_path: Path) -> None:
    """A `$` in their names is no variable of make. A read-only home folder is not used for a cache."""
    (project / ".venv/bin").mkdir()
    for name, script in SCRIPTS.items():
        (project / ".venv/bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (project / ".venv/bin" / name).chmod(0o755)
    (tmp_path / "psycopg2.py").touch()
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    places = {
        "FLORAL_RESULTS": str(tmp_path / "my $HOME results"),
        "FLORAL_REPORTS": str(tmp_path / "my $HOME reports"),
    }
    shown = make(project, "quickstart", HOME="/sys/home", XDG_CACHE_HOME="", **places)
    assert f"The report:     {places['FLORAL_REPORTS']}/quickstart/index.html\n" in shown, shown
    assert f"cache: {project}/.cache\n" in shown, shown
    server = ("ui-server", "PORT=0", "STORE=postgresql://host/db")
    shown = make(project, *server, PYTHONPATH=path, **places)
    assert f"{places['FLORAL_RESULTS']}/track/server-artifacts\n" in shown, shown
    assert "--artifacts-destination\n/some/where\n" in make(project, *server, "ARTIFACTS=/some/where", PYTHONPATH=path)
    (project / "config/config.yaml").write_text("suite: [a\n")
    shown = make(project, *server, PYTHONPATH=path)
    assert "config/config.yaml: this file is not valid YAML" in shown and "Traceback" not in shown, shown

"""Fixtures for tests of several folders: skips that fail in CI, projects, an MLflow store, data sets, a mirror."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from projects import ROOT, TINY, Project
from skips import stop

from floral.config import data_sets
from floral.data import sources
from floral.engine.capture import captured
from floral.io.locks import held
from floral.stages.fetch import data_folders, fetch
from floral.tracking.mlflow_store import create_store, default_uri


def pytest_configure() -> None:
    """Make the folders in FLORAL_DATA absolute, because tests change the working directory."""
    if folders := os.environ.get("FLORAL_DATA"):
        absolute = (str(Path(folder).expanduser().absolute()) for folder in folders.split(os.pathsep))
        os.environ["FLORAL_DATA"] = os.pathsep.join(absolute)


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """A function that skips the test and says what is missing. With CI=1 the test fails instead."""
    return stop


@pytest.fixture
def without_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend `batched` call its steps, and not record and replay them: recording takes as long as 50 steps.

    Recordings hold PyTorch's operations. The tests that record are those of the engine and, in tests/contracts, those
    of each variant on a small model and of two variants on all models.
    """
    monkeypatch.setattr(captured, "MAX_RECORDINGS", 0)


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Project]:
    def make(name: str) -> Project:
        return Project.made(tmp_path_factory.mktemp(name), tiny=TINY)

    return make


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A function that fills a folder once for all processes of pytest-xdist, and returns it."""

    def once(name: str, fill: Callable[[Path], None]) -> Path:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            fill(folder := tmp_path_factory.mktemp(name))
            return folder
        folder = tmp_path_factory.getbasetemp().parent / name  # the processes have folders of their own beside it
        filled = folder.with_name(f"{name}.filled")
        with held(folder.with_name(f"{name}.lock"), f"filling {name}"):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what another process left when it failed
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, once: Callable[[str, Callable[[Path], None]], Path]) -> Project:
    """A project with the finished suite `tiny`, shared by all tests. A test that changes it uses the fixture `copy`."""

    def fill(folder: Path) -> None:
        done = Project.made(folder, tiny=TINY).snakemake()
        assert done.returncode == 0, done.stdout

    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(once("whole", fill), folder, symlinks=True)
    return Project(folder)


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Project(folder)


@pytest.fixture
def project(make_project: Callable[[str], Project]) -> Project:
    return make_project("project")


@pytest.fixture(scope="session")
def made_store(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """An MLflow store without runs. Creating one takes seconds, so all tests share it."""
    return once("empty", lambda results: create_store(default_uri(results))) / "track"


@pytest.fixture
def empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made_store: Path) -> None:
    """Copy the empty store to `tmp_path`, for a test that tracks from the project's root."""
    monkeypatch.chdir(ROOT)
    shutil.copytree(made_store, tmp_path / "track")


@pytest.fixture
def mirror() -> Iterator[Any]:
    """A mirror on localhost: `serve` has its files, `cut` which answers end half-way, `seen` the requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        url = ""
        serve, cut, ranges, seen = {}, [], True, []

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            self.seen.append((self.path, wanted))
            if self.path not in self.serve:
                return self.send_error(404)
            body, start = self.serve[self.path], 0
            if wanted and self.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            rest = body[start:]
            if self.cut and self.cut.pop(0):
                rest = rest[: len(rest) // 2]
            self.wfile.write(rest)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


DEBIAN = Path("/usr/share/datasets")
"""Where Debian's packages of data sets put their files."""


@pytest.fixture(scope="session")
def stored(
    missing: Callable[[str], NoReturn], once: Callable[[str, Callable[[Path], None]], Path]
) -> Callable[[str], Path]:
    """A function that stores an entry of config/data.lock, and returns the folder of the results.

    All tests share the folder, because to decode the images of a data set takes up to 17 s.
    """
    results = once("stored", lambda folder: None)

    def store(name: str) -> Path:
        folders = (*(data_folders(None) if os.environ.get("FLORAL_DATA") else ()), DEBIAN)
        for file in data_sets.data_lock()[name].files:
            if not sources.is_there(file, results / "none", folders):
                missing(f"FLORAL_DATA has no {file.path}, and {DEBIAN} neither; .ci/setup installs Fashion-MNIST there")
        fetch(name, results, Path(os.pathsep.join(map(str, folders))))
        return results

    return store

"""Fixtures for tests of several folders: skips that fail in CI, projects, an empty MLflow store, no recordings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from projects import ROOT, TINY, Project
from skips import stop

from floral.engine.capture import captured
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
def finished(make_project: Callable[[str], Project]) -> Project:
    """A project with the finished suite `tiny`, shared by all tests. A test that changes it uses the fixture `copy`."""
    project = make_project("finished")
    done = project.snakemake()
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Project(folder)


@pytest.fixture
def project(make_project: Callable[[str], Project]) -> Project:
    return make_project("project")


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs. Creating one takes seconds, so all tests share it."""
    results = tmp_path_factory.mktemp("empty")
    create_store(default_uri(results))
    return results / "track"


@pytest.fixture
def empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made_store: Path) -> None:
    """Copy the empty store to `tmp_path`, for a test that tracks from the project's root."""
    monkeypatch.chdir(ROOT)
    shutil.copytree(made_store, tmp_path / "track")

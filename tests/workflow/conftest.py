"""A project of its own for each test: the real workflow and stages on a suite that takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from projects import TINY, Project


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Project]:
    def make(name: str) -> Project:
        return Project.made(tmp_path_factory.mktemp(name), tiny=TINY)

    return make


@pytest.fixture(scope="session")
def finished(make_project: Callable[[str], Project]) -> Project:
    """The suite `tiny`, made once. Tests that change it take `copy`."""
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

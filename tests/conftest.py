"""What every test shares: skips that turn into failures where all tools must be present."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest


def pytest_configure() -> None:
    """FLORAL_DATA as an absolute path: tests change the folder, and a relative one would then name another."""
    if folder := os.environ.get("FLORAL_DATA"):
        os.environ["FLORAL_DATA"] = str(Path(folder).expanduser().absolute())


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """`missing("what is not there")`: skips the test with that reason; under CI=1 the test fails instead."""

    def stop(what: str) -> NoReturn:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(what)

    return stop

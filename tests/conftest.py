"""What every test shares: skips that turn into failures where all tools must be present."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest


@pytest.fixture
def missing() -> Callable[[str], NoReturn]:
    """`missing("what is not there")`: skips the test with that reason; under CI=1 the test fails instead."""

    def stop(what: str) -> NoReturn:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(what)

    return stop

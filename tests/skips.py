"""Skip a test that needs something missing, and name it. With CI=1 the test fails instead."""

from __future__ import annotations

import importlib
import os
from typing import Any, NoReturn

import pytest


def stop(what: str) -> NoReturn:
    """Skip the test. `what` says what is missing."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def package(name: str) -> Any:
    """Import a package that only some tests need."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        stop(f"the package {error.name} is missing; install it: pip install -c constraints.txt -e '.[test,hf]'")

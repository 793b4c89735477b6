"""A copy of config/ that a test may change, and that is read instead of the real folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from floral.config import catalogue, code, data_sets, paths, plugins, searches, tuned

ROOT = Path(__file__).parents[2]
MODULES = (catalogue, code, data_sets, plugins, searches, tuned)
CACHES = [value for module in MODULES for value in vars(module).values() if hasattr(value, "cache_clear")]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that writes a file into the copy, such as `write("tasks/mine", key=value)`."""
    folder = tmp_path / "config"
    shutil.copytree(ROOT / "config", folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "CONFIG_FOLDER", Path("config"))

    def forget() -> None:
        for cached in CACHES:
            cached.cache_clear()

    def write(name: str, **values: Any) -> None:
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        forget()

    forget()
    yield write
    forget()

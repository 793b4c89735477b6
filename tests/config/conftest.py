"""A copy of config/ that a test may write into, and that is read instead of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from floral.config import catalogue, data_sets, paths, tuned

ROOT = Path(__file__).parents[2]
MODULES = (catalogue, data_sets, tuned)
CACHES = [value for module in MODULES for value in vars(module).values() if hasattr(value, "cache_clear")]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`write("tasks/mine", key=value)`: a file in the copy."""
    folder = tmp_path / "config"
    shutil.copytree(ROOT / "config", folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "CONFIG", Path("config"))

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

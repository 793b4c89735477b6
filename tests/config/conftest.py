"""A copy of config/ that a test may change, and that is read instead of the real folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from floral.config import paths
from floral.config.refresh import refresh

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that writes a file into the copy, such as `write("tasks/mine", key=value)`."""
    folder = tmp_path / "config"
    shutil.copytree(ROOT / "config", folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "CONFIG_FOLDER", Path("config"))

    def write(name: str, **values: Any) -> None:
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        refresh()

    refresh()
    yield write
    refresh()

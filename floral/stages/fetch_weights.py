"""Store the files of a pretrained network in results/data/<name>, as they are in config/data.lock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from floral.config.schema.data import DataSet
from floral.data import sources
from floral.data.sources import RawFile
from floral.io.files import atomic


def store(folder: Path, files: Sequence[RawFile], manifest: dict[str, Any]) -> None:
    """Copy the unpacked files to the folder, and write card.json last, which marks the folder as complete."""
    (folder / "card.json").unlink(missing_ok=True)
    for raw_file in files:
        target = folder / stored_name(raw_file.file.path)
        part = target.with_name(f"{target.name}.part")
        with sources.unpacked(raw_file.location) as source, part.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        part.replace(target)
    sizes = {name: (folder / name).stat().st_size for name in (stored_name(file.file.path) for file in files)}
    atomic(folder / "card.json", json.dumps({**manifest, "bytes": sizes}, indent=1).encode())


def is_complete(folder: Path, manifest: dict[str, Any], dataset: DataSet) -> bool:
    """Return whether the folder has all files of the network, each with the size in card.json."""
    names = [stored_name(file.path) for file in dataset.files]
    sizes = {path.name: path.stat().st_size for name in names if (path := folder / name).is_file()}
    return manifest.get("bytes") == sizes and len(sizes) == len(names)


def stored_name(path: str) -> str:
    """Return the name under which a file of a network is stored: its name without folders and without .gz."""
    return Path(path).name.removesuffix(".gz")

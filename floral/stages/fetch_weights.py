"""Store the files of a pretrained network in results/data/<name>, as they are in config/data.lock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from floral.config.networks import file_name
from floral.data import sources
from floral.data.sources import RawFile
from floral.io.files import atomic, content_sha256

PIECE = 1 << 20
"""Number of bytes that are copied at once."""


def store(folder: Path, files: Sequence[RawFile], manifest: dict[str, Any]) -> None:
    """Copy the unpacked files to the folder, and write card.json last, which marks the folder as complete."""
    (folder / "card.json").unlink(missing_ok=True)
    for raw_file in files:
        with sources.unpacked(raw_file.location) as source:
            atomic(folder / file_name(raw_file.file.path), iter(partial(source.read, PIECE), b""))
    atomic(folder / "card.json", json.dumps(manifest, indent=1).encode())


def is_complete(folder: Path, manifest: dict[str, Any]) -> bool:
    """Return whether the folder has all files of the network, each with the content that card.json says.

    Raises:
        FileNotFoundError: a file is missing.
    """
    return all(content_sha256(folder / file_name(file["path"])) == file["sha256"] for file in manifest["files"])

"""Atomic checkpoints: one safetensors file that holds the tensors and, in its header, the progress and a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from floral.io.files import atomic


class Unreadable(Exception):
    """A checkpoint is damaged; the message names the file and the remedy."""


def before(path: Path) -> Path:
    """The checkpoint before the one of this name."""
    return path.with_name(f"before-{path.name}")


def there(path: Path) -> bool:
    """Whether the run has a checkpoint, this one or the one before it."""
    return path.exists() or before(path).exists()


def remove(path: Path) -> None:
    """Both of them."""
    for one in (path, before(path)):
        one.unlink(missing_ok=True)


def write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Write, fsync, rename: a kill leaves a whole checkpoint, never half of one. The one before stays beside it."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = {"progress": json.dumps(progress), "names": json.dumps(list(contiguous))}
    if path.exists():
        path.replace(before(path))
    atomic(path, save(contiguous, metadata={**said, "checksum": checksum(contiguous, said)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress.

    Raises:
        Unreadable: the file is missing, half-written or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            names = json.loads(said["names"])  # in the order they had, on which the last bit of a sum depends
            tensors = {name: file.get_tensor(name).clone() for name in names}
        if said["checksum"] != checksum(tensors, said):
            raise ValueError("its checksum is not that of its content")
        return tensors, json.loads(said["progress"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Unreadable(f"{path}: the checkpoint is damaged ({error}); remove it to train from the start") from error


def checksum(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    """CRC-32 of the header's words and all bytes."""
    crc = zlib.crc32((said["progress"] + said["names"]).encode())
    for tensor in tensors.values():
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"

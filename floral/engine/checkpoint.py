"""Read checkpoints, and write them atomically.

A checkpoint is a safetensors file with the tensors. Its header contains the progress of the run and a checksum.
"""

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
    """The error for a missing or damaged checkpoint. The message names the file and says what to do."""


def before(path: Path) -> Path:
    """Return the path of the previous checkpoint, which lies in the same folder as the checkpoint `path`."""
    return path.with_name(f"before-{path.name}")


def there(path: Path) -> bool:
    """Return whether the checkpoint `path` or the previous checkpoint exists."""
    return path.exists() or before(path).exists()


def remove(path: Path) -> None:
    """Delete the checkpoint `path` and the previous checkpoint."""
    for checkpoint in (path, before(path)):
        checkpoint.unlink(missing_ok=True)


def write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, and keep the previous checkpoint in the same folder.

    The file is written under another name and then renamed. If the process is killed, a complete checkpoint therefore
    remains.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"progress": json.dumps(progress), "names": json.dumps(list(contiguous))}
    if path.exists():
        path.replace(before(path))
    atomic(path, save(contiguous, metadata={**header, "checksum": checksum(contiguous, header)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint; return its tensors by name, and the progress of the run.

    Raises:
        Unreadable: the file is missing, half-written or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = json.loads(header["names"])  # in the written order, because the last bit of a sum depends on it
            tensors = {name: file.get_tensor(name).clone() for name in names}
        if header["checksum"] != checksum(tensors, header):
            raise ValueError(
                "the checksum in the header does not match the tensors, so the file has changed since it was written"
            )
        return tensors, json.loads(header["progress"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Unreadable(f"{path}: the checkpoint is damaged ({error}); remove it to train from the start") from error


def checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the CRC-32 checksum of the bytes of all tensors, and of the progress and the names in the header."""
    crc = zlib.crc32((header["progress"] + header["names"]).encode())
    for tensor in tensors.values():
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"

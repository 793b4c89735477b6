"""Atomic checkpoints: one safetensors file that holds the tensors and, in its header, the progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from floral.files import atomic


class Unreadable(Exception):
    """A checkpoint is damaged; the message names the file and the remedy."""


def write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Write, fsync, rename: a kill leaves either the old or the new checkpoint, never half of one."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic(path, save(contiguous, metadata={"progress": json.dumps(progress), "names": json.dumps(list(contiguous))}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress.

    Raises:
        Unreadable: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            names = json.loads(said["names"])  # in the order they had, on which the last bit of a sum depends
            return {name: file.get_tensor(name).clone() for name in names}, json.loads(said["progress"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise Unreadable(f"{path}: the checkpoint is damaged ({error}); remove it to train from the start") from error

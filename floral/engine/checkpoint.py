"""Atomic checkpoints: one safetensors file that holds the tensors and, in its header, the progress."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class Unreadable(Exception):
    """A checkpoint is damaged; the message names the file and the remedy."""


def write(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Write, fsync, rename: a kill leaves either the old or the new checkpoint, never half of one."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic(path, save(contiguous, metadata={"progress": json.dumps(progress)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress.

    Raises:
        Unreadable: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads((file.metadata() or {})["progress"])
            return {name: file.get_tensor(name).clone() for name in file.keys()}, progress  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise Unreadable(f"{path}: the checkpoint is damaged ({error}); remove it to train from the start") from error


def atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step, durably: on a full disk the old one stays and no half-written one is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise

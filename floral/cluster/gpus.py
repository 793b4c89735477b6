"""Choose the device of a run: the CPU or a GPU. At most `runs_per_gpu` runs share a GPU."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from floral.config.reading import ConfigError
from floral.io.locks import leased

LOG = logging.getLogger("floral.train")


@contextmanager
def hold_device(device: str, runs_per_gpu: int) -> Iterator[torch.device]:
    """Yield the device of a run. On a GPU, first wait until fewer than `runs_per_gpu` other runs use it.

    The run counts as a user of the GPU until the context ends.

    Raises:
        ConfigError: `device` is "cuda" and there is no GPU.
    """
    resolved = resolve_device(device)
    if resolved.type == "cpu":
        if device == "auto":
            LOG.info("device: auto: torch finds no GPU; using the CPU")
        yield resolved
        return
    with leased(gpu_ids(), runs_per_gpu, lease_folder(os.environ)) as index:
        torch.cuda.set_device(index)  # streams and graphs are made on the current device
        LOG.info("GPU %d: %s", index, torch.cuda.get_device_name(index))
        yield torch.device("cuda", index)


def resolve_device(device: str) -> torch.device:
    """Return the device for "cpu", "cuda" or "auto". "auto" means a GPU if there is one, or else the CPU.

    Raises:
        ConfigError: `device` is "cuda" and there is no GPU.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`device: cuda`: torch finds no GPU on this machine; use `device: cpu` or `device: auto`")
    return torch.device(device)


def gpu_ids() -> list[str]:
    """Return the UUIDs of the visible GPUs.

    The numbers of the GPUs are not used, because they depend on CUDA_VISIBLE_DEVICES, which differs between processes.
    """
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def lease_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of the lock files that limit how many runs share a GPU of this machine.

    The folder is not in the results folder, because several machines may share the results folder. Every SLURM job has
    its own folder, because SLURM gives every job its own GPUs.
    """
    folder = Path(tempfile.gettempdir()) / f"floral-gpus-{os.getuid()}"
    job = environment.get("SLURM_JOB_ID")
    return folder / f"slurm-{job}" if job else folder

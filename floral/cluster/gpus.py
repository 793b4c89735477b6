"""Which device a run computes on: the CPU, or a place on a GPU that it holds by a lease until its process ends."""

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
def taken(device: str, runs_per_gpu: int) -> Iterator[torch.device]:
    """The device that was asked for; of a GPU one of its `runs_per_gpu` places, for which it waits while all are taken.

    Raises:
        ConfigError: there is no GPU, and "cuda" was asked for.
    """
    place = resolve_device(device)
    if place.type == "cpu":
        if device == "auto":
            LOG.info("device: auto: torch finds no GPU, so it is the CPU")
        yield place
        return
    with leased(gpus(), runs_per_gpu, lease_folder(os.environ)) as index:
        torch.cuda.set_device(index)  # streams and graphs are made on the current device
        LOG.info("GPU %d: %s", index, torch.cuda.get_device_name(index))
        yield torch.device("cuda", index)


def resolve_device(device: str) -> torch.device:
    """The kind of device that was asked for; "auto" takes a GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda: torch finds no GPU on this machine; use `device: cpu`, or `auto` to take what is there"
        )
    return torch.device(device)


def gpus() -> list[str]:
    """The visible GPUs by their own names, for CUDA_VISIBLE_DEVICES may number them differently in every process."""
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def lease_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's leases on this machine lie; those of a SLURM job are its own, for SLURM gave it its GPUs.

    Not with the results: several machines may share these, each of which has its own GPUs.
    """
    folder = Path(tempfile.gettempdir()) / f"floral-gpus-{os.getuid()}"
    job = environment.get("SLURM_JOB_ID")
    return folder / f"slurm-{job}" if job else folder

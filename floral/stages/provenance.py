"""Describe where a run was computed: the machine, the GPU, the memory and the commit of the code."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from floral.config import paths


def peak_memory(device: torch.device, earlier: int = 0) -> int:
    """Return the peak memory of a run in bytes: the GPU memory on a GPU, or else the memory of the process.

    If other processes worked on the run before, `earlier` is their peak. The larger of both values is returned.
    """
    if device.type == "cuda":  # reserved memory, because other runs cannot use it
        peak = torch.cuda.max_memory_reserved(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(peak, earlier)


def gpu(device: torch.device) -> dict[str, Any] | None:
    """Return the index, name and memory of the GPU; None if the device is a CPU."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {"index": device.index, "name": properties.name, "memory_bytes": properties.total_memory}


def machine() -> dict[str, Any]:
    """Return the Python version, PyTorch version, platform, CPU and number of cores of this machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = models[0] if models else model
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
    }


@cache
def git_commit() -> str | None:
    """Return the commit of the code; None outside a git checkout.

    A "+" is appended if files of the code or in config/ differ from the commit. The installed wheel is in no checkout,
    so the commit is then that of the study.
    """
    try:
        changed = _git("status", "--porcelain", "floral", "config", *paths.CODE_FOLDERS)
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = paths.STUDY if paths.PACKAGE.name == "packaged" else paths.PACKAGE
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

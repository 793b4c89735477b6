"""A separate project for a test: its folder, and how its commands are called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TINY = """
title: Tiny
about: Two rounds on four clients.
runs:
  - tasks: [digits_rotate]
    variants: [fedavg, local, floral_1]
    seeds: [0]
    task: {rounds: 2, clients: 4, clusters: 2}
"""


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: without FLORAL_ variables, which name folders of other projects.

    SLURM_CONF is empty, so that SLURM's commands do not wait for a controller.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FLORAL_")}
    return inherited | {"SLURM_CONF": "/dev/null"} | more


@dataclass(frozen=True)
class Project:
    folder: Path

    @classmethod
    def made(cls, folder: Path, **suites: str) -> Project:
        """Copy what Snakemake needs into an empty folder, and add suites by name and text."""
        for part in ("workflow", "config"):
            shutil.copytree(ROOT / part, folder / part)
        for part in ("Snakefile", "local", "slurm", "gpu"):
            shutil.copy(ROOT / part, folder / part, follow_symlinks=False)
        for name, text in suites.items():
            (folder / "config" / "suites" / f"{name}.yaml").write_text(text)
        return cls(folder)

    def call(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder. stdout has its standard error too."""
        return subprocess.run(
            [BIN / command[0], *command[1:]], cwd=self.folder, env=environment(**more), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
        )  # fmt: skip

    def snakemake(self, *config: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.call("snakemake", "--profile", "local", "--config", "suite=tiny", *config, **more)

    def path(self, pattern: str) -> Path:
        """The only file or folder that matches the pattern."""
        (path,) = self.folder.glob(pattern)
        return path

    def paths(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))

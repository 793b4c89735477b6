"""A project of its own for a test: where it lies, how its commands are called."""

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
    """Ours without what would lead a command to other folders; SLURM's commands must not wait for a controller."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLORAL_")}
    return kept | {"SLURM_CONF": "/dev/null"} | more


@dataclass(frozen=True)
class Project:
    folder: Path

    @classmethod
    def made(cls, folder: Path, **suites: str) -> Project:
        """What a clean clone has for Snakemake, in an empty folder, with suites of these names and texts."""
        for part in ("workflow", "config"):
            shutil.copytree(ROOT / part, folder / part)
        for part in ("Snakefile", "local", "slurm", "gpu"):
            shutil.copy(ROOT / part, folder / part, follow_symlinks=False)
        for name, text in suites.items():
            (folder / "config" / "suites" / f"{name}.yaml").write_text(text)
        return cls(folder)

    def call(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project's environment in its folder; stdout and stderr come together."""
        return subprocess.run(
            [BIN / command[0], *command[1:]], cwd=self.folder, env=environment(**more), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=170,
        )  # fmt: skip

    def snakemake(self, *config: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.call("snakemake", "--profile", "local", "--config", "suite=tiny", *config, **more)

    def path(self, pattern: str) -> Path:
        """The one file or folder of this pattern."""
        (found,) = self.folder.glob(pattern)
        return found

    def paths(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))

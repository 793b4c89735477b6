"""Read the settings of one command from config/config.yaml, `--config` and environment variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from floral.config import paths, reading
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.base import Frozen
from floral.config.searches import Search
from floral.config.suites import suite_runs, suite_searches
from floral.config.tuned import is_current
from floral.core.precision import Precision

ENVIRONMENT = {
    "results": "FLORAL_RESULTS", "reports": "FLORAL_REPORTS", "data_dir": "FLORAL_DATA",
    "tracking_uri": "FLORAL_TRACKING_URI",
}  # fmt: skip
"""Key of config/config.yaml → the environment variable that overrides its value in this file."""


class Slurm(Frozen):
    """The key `slurm` of config/config.yaml: resources that jobs request from a SLURM cluster."""

    partition: str | None = Field(
        default=None, description="SLURM partition of the jobs; null for the default of the cluster."
    )
    account: str | None = Field(default=None, description="SLURM account of the jobs; null for your default account.")
    walltime: int = Field(
        default=1440,
        ge=1,
        description="Maximum time limit of a job in minutes; jobs request 3 times the expected time.",
    )
    memory: int = Field(
        default=2000,
        ge=100,
        description="Memory of a job in MB, used until the memory of a finished run of the task is known.",
    )
    gpu: int = Field(default=0, ge=0, description="Number of GPUs of each training run; 0 trains on the CPU.")
    gpu_model: str | None = Field(default=None, description="GPU model by its name on the cluster; null for any model.")
    short: float = Field(
        default=120, ge=0, description="Runs that take at most this many seconds, by estimate, share one job."
    )


class Settings(Frozen):
    """The settings of config/config.yaml. Snakemake's option `--config KEY=VALUE` changes a setting for one command."""

    suite: tuple[str, ...] = Field(
        min_length=1, description="Suite to run: a file of config/suites, or a list of several."
    )
    tasks: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Tasks to which the suite is narrowed; null for all."
    )
    variants: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Variants to which the suite is narrowed; null for all."
    )
    seeds: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="Seeds to which the suite is narrowed; null for all."
    )
    results: Path = Field(
        default=Path("results"),
        description="Results folder, with runs, partitions and data; FLORAL_RESULTS overrides this file.",
    )
    reports: Path = Field(
        default=Path("reports"), description="Folder of the reports; FLORAL_REPORTS overrides this file."
    )
    data_dir: Path | None = Field(
        default=None,
        description="Folder with raw data files, which are then not downloaded; FLORAL_DATA overrides this file.",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow server or database; null: SQLite in `results`. FLORAL_TRACKING_URI overrides this file.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu", description="Device that trains; `auto` uses a GPU if there is one."
    )
    backend: Literal["auto", "loop", "vmap", "batched"] = Field(
        default="auto", description="How clients are simulated; this changes the speed, and results only by rounding."
    )
    precision: Precision = Field(
        default="fp32", description="Precision of matrix products; runs of another precision have folders of their own."
    )
    runs_per_gpu: int = Field(
        default=1, gt=0, description="Maximum number of runs on one GPU at the same time; further runs wait."
    )
    checkpoint_seconds: float = Field(
        default=60, gt=0, description="Seconds between two checkpoints of a run; a killed run loses at most this time."
    )
    allow_missing: bool = Field(
        default=False,
        description="Whether runs with unavailable data are skipped and listed; if not, they are an error.",
    )
    reuse: bool = Field(
        default=True,
        description="Whether runs are taken from reports/reference, if it has them, and not trained again.",
    )
    slurm: Slurm = Field(default=Slurm(), description="Resources that jobs request from a SLURM cluster.")

    @field_validator("suite", "tasks", "variants", "seeds", mode="before")
    @classmethod
    def _wrap_single_value(cls, value: Any, info: ValidationInfo) -> Any:
        if value in ("", []) or (value is None and info.field_name == "suite"):
            raise ValueError("this list is empty; give at least one entry, or remove the key")
        return [value] if isinstance(value, str | int) else value

    @property
    def narrowing(self) -> dict[str, tuple[Any, ...] | None]:
        """The tasks, variants and seeds to which the suites are restricted. The value None means no restriction."""
        return {"tasks": self.tasks, "variants": self.variants, "seeds": self.seeds}

    def environment(self) -> dict[str, str]:
        """Return environment variables for the jobs: PATH, the folders to use, and the address of MLflow.

        PATH begins with the folder of this Python, so that jobs find the same command `floral`. The data folder and the
        address are left out if they are not set.
        """
        variables = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLORAL_RESULTS": str(self.results),
            "FLORAL_REPORTS": str(self.reports),
        }
        optional = {"FLORAL_DATA": self.data_dir, "FLORAL_TRACKING_URI": self.tracking_uri}
        return variables | {name: str(value) for name, value in optional.items() if value}

    def export(self) -> None:
        """Set the variables that `environment()` returns in this process, so that its jobs inherit them.

        If the settings name no data folder or no address of MLflow, its environment variable is removed.
        """
        for name in ENVIRONMENT.values():
            os.environ.pop(name, None)
        os.environ.update(self.environment())

    def runs(self) -> dict[str, list[Run]]:
        """Return the runs of each suite, by the name of the suite.

        Raises:
            ConfigError: a YAML file is wrong, or a task, variant or seed is unknown.
        """
        selection: dict[str, Any] = {**self.narrowing, "precision": self.precision}
        return {name: suite_runs(name, **selection) for name in dict.fromkeys(self.suite)}

    def searches(self) -> dict[str, tuple[str, Search]]:
        """Return the hyper-parameter searches whose chosen values are not yet in config/tuned.

        The result maps the folder of each search to a pair: the name of the suite, and the search. If several suites
        need the same search, the pair names the first of these suites.
        """
        by_suite = {name: suite_searches(name, self.tasks, self.variants) for name in dict.fromkeys(self.suite)}
        return {
            str(folder): (name, search)
            for name in reversed(by_suite)
            for folder, search in by_suite[name].items()
            if not is_current(search)
        }


def read_settings(values: Mapping[str, Any] | None = None, command_line: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings from `values`, or from config/config.yaml if `values` is None.

    Environment variables replace the values in the file, but not the values of Snakemake's option `--config`. Snakemake
    therefore passes both: `values` is the content of the file, updated with the values of `--config`, and
    `command_line` has only the values of `--config`.

    Raises:
        ConfigError: the file is missing, or a value is wrong.
    """
    path = paths.CONFIG_FOLDER / "config.yaml"
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; call floral and snakemake in the project's root, which contains the Snakefile"
        )
    where = str(path) if values is None else f"{path} or --config"
    parsed: Settings = reading.parse(Settings, reading.read(path) if values is None else values, where)
    environment: dict[str, Any] = {key: value for key, name in ENVIRONMENT.items() if (value := os.environ.get(name))}
    environment |= {key: Path(value) for key, value in environment.items() if key != "tracking_uri"}
    typed = command_line or {}
    return parsed.model_copy(update={key: value for key, value in environment.items() if key not in typed})

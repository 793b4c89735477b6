"""Settings of one call: config/config.yaml, what `--config` changed, and the environment."""

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
from floral.config.suites import suite_runs, suite_searches
from floral.config.tuned import Search, is_current


class Slurm(Frozen):
    """The key `slurm` of config/config.yaml: what a job asks its cluster for."""

    partition: str | None = None
    account: str | None = None
    walltime: int = Field(default=1440, ge=1)
    memory: int = Field(default=2000, ge=100)
    gpu: int = Field(default=0, ge=0)
    gpu_model: str | None = None
    short: float = Field(default=120, ge=0)


class Settings(Frozen):
    """config/config.yaml with what `--config` changed."""

    suite: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[str, ...] | None = Field(None, min_length=1)
    variants: tuple[str, ...] | None = Field(None, min_length=1)
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    results: Path = Path("results")
    reports: Path = Path("reports")
    data_dir: Path | None = None
    tracking_uri: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    backend: Literal["auto", "loop", "vmap", "batched"] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    runs_per_gpu: int = Field(1, gt=0)
    checkpoint_seconds: float = Field(60, gt=0)
    allow_missing: bool = False
    reuse: bool = True
    slurm: Slurm = Slurm()

    @field_validator("suite", "tasks", "variants", "seeds", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any, info: ValidationInfo) -> Any:
        if value in ("", []) or (value is None and info.field_name == "suite"):
            raise ValueError("names nothing: name at least one, or leave the key out")
        return [value] if isinstance(value, str | int) else value

    @property
    def narrowing(self) -> dict[str, tuple[Any, ...] | None]:
        return {"tasks": self.tasks, "variants": self.variants, "seeds": self.seeds}

    def environment(self) -> dict[str, str]:
        """What jobs read: the command `floral` of this very environment, activated or not, and the chosen folders."""
        found = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLORAL_RESULTS": str(self.results),
            "FLORAL_REPORTS": str(self.reports),
        }
        given = {"FLORAL_DATA": self.data_dir, "FLORAL_TRACKING_URI": self.tracking_uri}
        return found | {name: str(value) for name, value in given.items() if value}

    def runs(self) -> dict[str, list[Run]]:
        """suite → its runs; raises ConfigError for whatever the YAML files or the narrowing have wrong."""
        return {name: suite_runs(name, **self.narrowing) for name in dict.fromkeys(self.suite)}

    def searches(self) -> dict[str, tuple[str, Search]]:
        """folder → the suite that asks for it and the search, of all whose values are not committed; a search that two
        suites share is under the first."""
        chosen = {name: suite_searches(name, self.tasks, self.variants) for name in dict.fromkeys(self.suite)}
        return {
            str(at): (name, one) for name in reversed(chosen) for at, one in chosen[name].items() if not is_current(one)
        }


def read_settings(values: Mapping[str, Any] | None = None) -> Settings:
    """Check `values` (Snakemake's merged config; by default config/config.yaml) and let the environment win."""
    path = paths.CONFIG / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{path}: no such file; commands are typed in the project's root, where the Snakefile is")
    where = str(path) if values is None else f"{path} or --config"
    given = reading.read(path) if values is None else values
    parsed: Settings = reading.parse(Settings, given, where)
    named = {"results": "FLORAL_RESULTS", "reports": "FLORAL_REPORTS", "data_dir": "FLORAL_DATA"}
    environment: dict[str, Any] = {key: Path(value) for key, name in named.items() if (value := os.environ.get(name))}
    if uri := os.environ.get("FLORAL_TRACKING_URI"):
        environment["tracking_uri"] = uri
    return parsed.model_copy(update=environment)

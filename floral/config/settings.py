"""Read the settings of one command from config/config.yaml, `--config` and environment variables."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from floral.config import layers, paths, plugins, reading
from floral.config.plugins import INTERFACE_VERSION
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.base import Frozen
from floral.config.searches import Search
from floral.config.suites import suite_runs, suite_searches
from floral.config.tuned import is_current
from floral.core.passwords import without_passwords
from floral.core.precision import Precision
from floral.io.files import REMEDIES

ENVIRONMENT = {
    "results": "FLORAL_RESULTS", "reports": "FLORAL_REPORTS", "reference": "FLORAL_REFERENCE",
    "data_dir": "FLORAL_DATA", "tracking_uri": "FLORAL_TRACKING_URI", "figures": "FLORAL_FIGURES",
}  # fmt: skip
"""Key of config/config.yaml → the environment variable that overrides its value in this file."""

FOLDERS = ("results", "reports", "reference", "data_dir")
"""Keys that name folders. In config/config.yaml, their paths begin in the folder of the study."""

SET_ELSEWHERE = {
    "--partition": "`partition`", "--account": "`account`", "--qos": "`qos`", "--constraint": "`constraint`",
    "--time": "`walltime`", "--mem": "`memory`", "--mem-per-cpu": "`memory`", "--gres": "`gpu` and `gpu_model`",
    "--gpus": "`gpu` and `gpu_model`",
    **dict.fromkeys(
        ("--job-name", "--output", "--error", "--parsable", "--export", "--comment", "--workdir", "--chdir", "--signal",
         "--ntasks", "--ntasks-per-gpu", "--cpus-per-task", "--cpus-per-gpu", "--nodes", "--clusters", "--wrap",
         "--array", "--requeue", "--no-requeue"),
        "Snakemake",
    ),
}  # fmt: skip
"""Option of sbatch that `slurm: options` must not name → what sets this option."""

UNUSABLE = frozenset("{}[]*?")
"""Characters that paths of results and reports cannot have. Unprintable characters are also refused."""


FigurePreset = Literal["column", "text", "slide"]


class Slurm(Frozen):
    """The key `slurm` of config/config.yaml: resources that jobs request from a SLURM cluster."""

    partition: str | None = Field(
        default=None,
        description="SLURM partition of the jobs, or several with commas; null for the default of the cluster.",
    )
    account: str | None = Field(default=None, description="SLURM account of the jobs; null for your default account.")
    qos: str | None = Field(default=None, description="Quality of service of the jobs; null for your default.")
    constraint: str | None = Field(default=None, description="Features that nodes must have; null for any node.")
    options: tuple[str, ...] = Field(
        default=(), description="Further options of sbatch, such as [--reservation=course, --exclude=node7]."
    )
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

    @field_validator("partition")
    @classmethod
    def _without_spaces(cls, partition: str | None) -> str | None:
        return None if partition is None else ",".join(partition.replace(",", " ").split()) or None

    @field_validator("options", mode="before")
    @classmethod
    def _wrap_single_option(cls, options: Any) -> Any:
        return [options] if isinstance(options, str) else options

    @field_validator("options")
    @classmethod
    def _only_free_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            name = option.split("=")[0]
            if not re.fullmatch(r"--[a-z][a-z-]*", name):
                raise ValueError(f"{option!r} is no long option of sbatch; write it as --name=value or --name")
            if name in SET_ELSEWHERE:
                raise ValueError(f"{name} is set by {SET_ELSEWHERE[name]}; remove it from `options`")
        return options


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
    reference: Path = Field(
        default=Path("reports/reference"),
        description="Folder of reference results, whose runs are reused; FLORAL_REFERENCE overrides this file.",
    )
    data_dir: Path | None = Field(
        default=None,
        description="Folder with raw data files, which are then not downloaded, or several, separated by `:`; "
        "FLORAL_DATA overrides this file.",
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
        description="Whether runs are taken from the folder `reference`, if it has them, and not trained again.",
    )
    figures: FigurePreset = Field(
        default="column",
        description="Size of the figures: `column` (3.25 inches) or `text` (6.75 inches) of a paper, or `slide`.",
    )
    slurm: Slurm = Field(default=Slurm(), description="Resources that jobs request from a SLURM cluster.")
    interface: int | None = Field(
        default=None,
        description="Version of the interface for which the study's files in methods/ and models/ were written.",
    )

    @field_validator("interface")
    @classmethod
    def _is_the_interface_of_this_version(cls, value: int | None) -> int | None:
        if value is not None and value != INTERFACE_VERSION:
            raise ValueError(
                f"this version of floral has the interface {INTERFACE_VERSION}; change the files in methods/ and "
                f"models/ as CHANGELOG.md says, or install a version with the interface {value}; then set `interface: "
                f"{INTERFACE_VERSION}`"
            )
        return value

    @field_validator("suite", "tasks", "variants", "seeds", mode="before")
    @classmethod
    def _wrap_single_value(cls, value: Any, info: ValidationInfo) -> Any:
        if value in ("", []) or (value is None and info.field_name == "suite"):
            raise ValueError("this list is empty; give at least one entry, or remove the key")
        between = r"[\s,;]+" if info.field_name == "seeds" else r"\s*[,;]\s*"  # names may contain spaces
        if isinstance(value, str) and len(words := re.split(between, value.strip(" ,;[]"))) > 1:
            listed = f"{info.field_name}=[{','.join(words)}]"
            raise ValueError(f"this is one word and not a list; write brackets, on the command line: '{listed}'")
        values = [value] if isinstance(value, str | int) else value
        if info.field_name == "seeds" and isinstance(values, list | tuple):
            for entry in values:
                if isinstance(entry, str) and not re.fullmatch(r"\s*\d+\s*", entry):
                    raise ValueError(f"{entry!r} is not a whole number of at least 0; write a list: 'seeds=[0,1]'")
        return values

    @field_validator(*FOLDERS)
    @classmethod
    def _expand_home(cls, folder: Path | None) -> Path | None:
        try:
            return None if folder is None else folder.expanduser()
        except RuntimeError:
            raise ValueError("this user has no home directory; write the whole path in place of `~`") from None

    @field_validator("tracking_uri")
    @classmethod
    def _is_an_address(cls, uri: str | None) -> str | None:
        if uri is not None and not re.fullmatch(r"(https?://[^/]|(sqlite|postgresql|mysql|mssql)(\+\w+)?://)\S*", uri):
            raise ValueError(
                "this is no address of MLflow; write http://host:port for a server, sqlite:////folder/file.db or "
                "postgresql://user@host/database"
            )
        return uri

    @property
    def shown_tracking_uri(self) -> str | None:
        """The address of MLflow without its password, for messages and files."""
        return None if self.tracking_uri is None else without_passwords(self.tracking_uri)

    @property
    def narrowing(self) -> dict[str, tuple[Any, ...] | None]:
        """The tasks, variants and seeds to which the suites are restricted. The value None means no restriction."""
        return {"tasks": self.tasks, "variants": self.variants, "seeds": self.seeds}

    def check_folders(self) -> None:
        """Create the folders of results and reports if they are missing, and check that files can be written there.

        Raises:
            ConfigError: no file can be written in a folder.
        """
        for key, folder in (("results", self.results), ("reports", self.reports)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder).close()
            except OSError as error:
                reason = REMEDIES.get(error.errno or 0, f"{error.strerror}; choose another folder")
                raise ConfigError(f"{ENVIRONMENT[key]}, or `{key}` in config.yaml: {folder}: {reason}") from None

    def environment(self) -> dict[str, str]:
        """Return environment variables for the jobs: PATH, the folders to use, and the address of MLflow.

        PATH begins with the folder of this Python, so that jobs find the same command `floral`. The data folder and the
        address are left out if they are not set.
        """
        variables = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLORAL_RESULTS": str(self.results),
            "FLORAL_REPORTS": str(self.reports),
            "FLORAL_REFERENCE": str(self.reference),
            "FLORAL_FIGURES": self.figures,
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


def read_settings(command_line: Mapping[str, Any] | None = None, *, outside: bool = False) -> Settings:
    """Return the settings from config/config.yaml, changed by environment variables and by `command_line`.

    `command_line` has the values of Snakemake's option `--config`. They win over environment variables, which win over
    the file. With `outside`, a folder without this file also has settings: those of the package.

    Raises:
        ConfigError: the file is missing, a value is wrong, or `interface` is missing in a study with code.
    """
    path = layers.file("config.yaml") if outside else paths.CONFIG_FOLDER / "config.yaml"
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; call floral and snakemake in the folder of a study, which contains the Snakefile "
            "(`floral init FOLDER` makes a study)"
        )
    typed = _without_null(command_line or {})
    values = reading.merge(reading.read(path), typed)
    environment = {key: name for key, name in ENVIRONMENT.items() if os.environ.get(name) and key not in typed}
    values |= {key: os.environ[name] for key, name in environment.items()}
    settings: Settings = reading.parse(Settings, values, str(path) if command_line is None else f"{path} or --config")
    if settings.interface is None and path.is_relative_to(paths.CONFIG_FOLDER) and (file := plugins.file_of_study()):
        raise ConfigError(
            f"{path}: interface: this key is missing, but {file} uses floral; write `interface: {INTERFACE_VERSION}`, "
            "the interface of this version, or the version for which the file was written"
        )
    of_file = {key: getattr(settings, key) for key in FOLDERS if key not in typed and key not in environment}
    settings = settings.model_copy(
        update={
            key: _in_study(folder) if key == "data_dir" else paths.STUDY / folder
            for key, folder in of_file.items()
            if folder is not None
        }
    )
    for key in ("results", "reports"):
        source = environment.get(key) or f"{path} or --config: {key}"
        check_folder(getattr(settings, key), source)
    return settings


def _in_study(folders: Path) -> Path:
    """Return one or several folders of config.yaml, separated as in PATH, each relative to the study."""
    return Path(os.pathsep.join(str(paths.STUDY / folder) for folder in str(folders).split(os.pathsep)))


def _without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `--config` with None in place of the word null. Snakemake reads all values as text."""
    return {
        key: _without_null(value) if isinstance(value, Mapping) else None if value in ("null", "~") else value
        for key, value in values.items()
    }


def check_folder(folder: Path, source: str) -> None:
    """Raise ConfigError if the path of a folder has a character that the workflow cannot use, or leads to a file.

    Snakemake reads braces as wildcards, and other tools read the other characters as patterns. `source` is the key or
    the environment variable that names the folder.
    """
    text = str(folder.absolute())
    if wrong := sorted({character for character in text if character in UNUSABLE or not character.isprintable()}):
        listed = " ".join(map(repr, wrong))
        raise ConfigError(f"{source}: the path {text!r} contains {listed}; choose a path without these characters")
    file = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.is_file()), None)
    if file is not None:
        raise ConfigError(f"{source}: {file} is a file and no folder; move the file, or choose another folder")
